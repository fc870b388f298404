"""Probes: the few images of the judged split that are looked into, the same for every part of the page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.errors import ConfigError
from service.inference import Predictions
from service.report.pictures import Drawing, photo
from service.report.subject import Subject

RANKS = 3  # classes that maps are made for, where there are more than `NAMED`
NAMED = 4


@dataclass(frozen=True)
class Probe:
    """One image that is looked into.

    Attributes:
        row: Where it stands in its split.
        pixels: uint8 `[H, W, C]`.
        truth: Its class.
        predicted: The most probable class.
        probability: Of the latter.
        classes: int `[M]`: the classes that maps are made for.
        name: Of the image, for people.
    """

    row: int
    pixels: np.ndarray
    truth: int
    predicted: int
    probability: float
    classes: np.ndarray
    name: str


def photos_of(subject: Subject) -> list[Drawing]:
    """The probes themselves as pictures."""
    return [
        photo(probe.pixels, "input", probe.name.capitalize(), origin_of(subject, probe))
        for probe in subject.probes
    ]


def origin_of(subject: Subject, probe: Probe, **parameters: object) -> dict[str, object]:
    """What a picture of a probe was made from, for the manifest."""
    return subject.origin(
        subject.evaluation, [probe.row], checkpoint=subject.model_digest, scale=subject.scale, **parameters
    )


def choose(predictions: Predictions, count: int) -> np.ndarray:
    """Picks images to look into: from each class in turn the surest right answer, else the least wrong one.

    Returns:
        int64 `[<= count]`, indices into the predictions.
    """
    of_truth = predictions.probabilities[np.arange(len(predictions.labels)), predictions.labels]
    right = predictions.classes == predictions.labels
    best_first = np.lexsort((-of_truth, ~right))
    ranks = np.empty(len(best_first), np.int64)
    for label in np.unique(predictions.labels):
        members = best_first[predictions.labels[best_first] == label]
        ranks[members] = np.arange(len(members))
    return np.lexsort((predictions.labels, ranks))[:count]


def asked(probabilities: np.ndarray, truth: int) -> np.ndarray:
    """The classes that maps of an image are made for.

    Args:
        probabilities: float `[K]`.
        truth: The true class.

    Returns:
        int64 `[M]`: all classes in their order where there are few, else the most probable ones, of which the true class
        takes the last place if it is not among them.
    """
    if len(probabilities) <= NAMED:
        return np.arange(len(probabilities))
    best = np.argsort(-probabilities, kind="stable")[:RANKS]
    if truth not in best:
        best[-1] = truth
    return best


def probes(subject: Subject) -> tuple[Probe, ...]:
    """The probes of a subject: as many as any part shows.

    Raises:
        ConfigError: Rows were asked for that are not in the split.
    """
    predictions, images = subject.predictions, subject.evaluation
    chosen = _chosen(subject)
    rows = predictions.rows[chosen]
    pixels = images.read(rows.tolist()) if len(rows) else []
    found = []
    for index, row, image in zip(chosen, rows, pixels, strict=True):
        probabilities, truth = predictions.probabilities[index], int(predictions.labels[index])
        best = int(predictions.classes[index])
        name = f"{images.split} image {row}, {subject.classes[truth]}"
        found.append(
            Probe(int(row), image, truth, best, float(probabilities[best]), asked(probabilities, truth), name)
        )
    return tuple(found)


def _chosen(subject: Subject) -> np.ndarray:
    wanted, predictions = subject.options.activation_rows, subject.predictions
    if wanted is None:
        return choose(predictions, max(subject.options.activation_images, subject.options.heatmap_images))
    places = {int(row): index for index, row in enumerate(predictions.rows)}
    for row in wanted:
        if row not in places:
            raise ConfigError(
                f"rows from 0 to {len(places) - 1}",
                f"activation_rows={row}",
                f"pick rows of the {subject.evaluation.split} split",
            )
    return np.array([places[row] for row in wanted], np.int64)
