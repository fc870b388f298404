"""Probes: the few images of the judged split that are looked into, the same for every part of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.errors import ConfigError
from service.inference.classifier import Predictions
from service.report.analysis.images import Images
from service.report.options import ReportOptions

RANKS = 3  # classes that maps are made for, where there are more than `NAMED`
NAMED = 4


@dataclass(frozen=True)
class ReportExample:
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


def explained_classes(probabilities: np.ndarray, truth: int) -> np.ndarray:
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


def select_examples(
    predictions: Predictions, images: Images, classes: Sequence[str], options: ReportOptions
) -> tuple[ReportExample, ...]:
    """Selects the images that the report examines closely: as many as any section shows.

    Args:
        predictions: Predictions for the whole split.
        images: The split the predictions were computed on.
        classes: Class names; labels are indices into them.
        options: How many examples, or which rows.

    Raises:
        ConfigError: `options.activation_rows` names a row that the split does not have.
    """
    indices = _select_indices(predictions, images.split, options)
    rows = predictions.rows[indices]
    pixels = images.read(rows.tolist()) if len(rows) else []
    examples = []
    for index, row, image in zip(indices, rows, pixels, strict=True):
        probabilities = predictions.probabilities[index]
        truth = int(predictions.labels[index])
        predicted = int(predictions.classes[index])
        examples.append(
            ReportExample(
                row=int(row),
                pixels=image,
                truth=truth,
                predicted=predicted,
                probability=float(probabilities[predicted]),
                classes=explained_classes(probabilities, truth),
                name=f"{images.split} image {row}, {classes[truth]}",
            )
        )
    return tuple(examples)


def _select_indices(predictions: Predictions, split: str, options: ReportOptions) -> np.ndarray:
    """Indices into the predictions of the examples, int64 `[N]`."""
    if options.activation_rows is None:
        return choose(predictions, max(options.activation_images, options.heatmap_images))
    index_of_row = {int(row): index for index, row in enumerate(predictions.rows)}
    for row in options.activation_rows:
        if row not in index_of_row:
            raise ConfigError(
                f"rows from 0 to {len(index_of_row) - 1}",
                f"activation_rows={row}",
                f"pick rows of the {split} split",
            )
    return np.array([index_of_row[row] for row in options.activation_rows], np.int64)
