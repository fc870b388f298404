"""The table of the gallery: which images it shows, and their predictions, as columns for the page."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.scores import losses

if TYPE_CHECKING:  # it loads Keras, which the table does not need
    from service.inference.classifier import Predictions

PROBABILITY_STEPS = 10_000  # probabilities are rounded to 0.01 %
LOSS_STEPS = 4_000  # losses are rounded to 0.00025 nats; the largest, -log(1e-7), still takes two bytes
TOP = 3  # most probable classes that the table holds for each image


@dataclass(frozen=True)
class GalleryTable:
    """The images of the gallery, in ascending order of their rows.

    Attributes:
        rows: int64 `[N]`, row numbers of the images in their split.
        truths: int64 `[N]`, labels of the true classes.
        top: int64 `[N, T]`, labels of the most probable classes, the predicted one first.
        rests: int64 `[N, T]`, what a class and the more probable ones leave of 1, in steps of
            1 / `PROBABILITY_STEPS`: falling along each row. The probability of a class is the difference to
            the class before.
        losses: int64 `[N]`, losses in steps of 1 / `LOSS_STEPS` nats; 0 for a correct prediction, whose loss
            follows from its probability.
        ids: Names of the images in their source.
        clusters: int64 `[N]`, clusters of the images, or `NO_CLUSTER`; None if there are none.
    """

    rows: NDArray[np.int64]
    truths: NDArray[np.int64]
    top: NDArray[np.int64]
    rests: NDArray[np.int64]
    losses: NDArray[np.int64]
    ids: Sequence[str]
    clusters: NDArray[np.int64] | None = None


def select_images(predictions: Predictions, count: int) -> NDArray[np.int64]:
    """Selects the most informative images: half by the highest loss, the others of each class in turn.

    Args:
        predictions: Predictions for N images.
        count: Number of images to select, at most.

    Returns:
        int64 `[min(N, count)]`, ascending indices into the predictions.
    """
    order = np.argsort(-losses(predictions.probabilities, predictions.labels), kind="stable")
    worst = order[: -(-count // 2)]
    others = np.sort(order[len(worst) :])
    # The first of a shuffled class are a sample of it.
    shuffled = np.random.default_rng(0).permutation(others)
    sample = alternate_classes(shuffled, predictions.labels)[: max(0, count - len(worst))]
    selected: NDArray[np.int64] = np.sort(np.concatenate([worst, sample]))
    return selected


def alternate_classes(indices: NDArray[np.int64], labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """Reorders indices so that the classes alternate, and keeps the order within each class."""
    labels_of_indices = labels[indices]
    turns = np.zeros(len(indices), np.int64)
    for label in np.unique(labels_of_indices):
        is_of_class = labels_of_indices == label
        turns[is_of_class] = np.arange(is_of_class.sum())
    return indices[np.argsort(turns, kind="stable")]


def build_table(
    predictions: Predictions,
    indices: NDArray[np.int64],
    clusters: NDArray[np.int64] | None,
    ids: Sequence[str],
) -> GalleryTable:
    """Builds the table of some images.

    Args:
        predictions: Predictions for the whole split.
        indices: Images as indices into the predictions, in ascending order of their rows.
        clusters: Clusters of all images of the split; None without clusters.
        ids: Names of the selected images.
    """
    probabilities = predictions.probabilities[indices]
    truths = predictions.labels[indices]
    most_probable = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    sums = np.take_along_axis(probabilities, most_probable, axis=1).astype(np.float64).cumsum(axis=1)
    is_correct = most_probable[:, 0] == truths
    return GalleryTable(
        rows=predictions.rows[indices],
        truths=truths.astype(np.int64),
        top=most_probable,
        rests=np.maximum(_round(1 - sums, PROBABILITY_STEPS), 0),
        losses=np.where(is_correct, 0, _round(losses(probabilities, truths), LOSS_STEPS)),
        ids=ids,
        clusters=None if clusters is None else clusters[indices],
    )


def list_columns(table: GalleryTable) -> dict[str, Any]:
    """Lists a table as columns for the page's script; most of their numbers have one or two digits.

    Returns:
        `gaps`: each row as its difference to the row before; `truth`: labels of the true classes; `errors`:
        labels of the predicted classes by image, where they differ from the true ones; `losses`: those of
        these images; `others`: labels of the second most probable class, then those of the third; `rests`,
        one list for each place; `ids` without what all of them begin with, `id_start`; `clusters`, if there
        are any; `probability_steps` and `loss_steps`: the values that stand for 1.
    """
    wrong = np.flatnonzero(table.top[:, 0] != table.truths)
    id_start = find_common_start(table.ids)
    columns: dict[str, Any] = {
        "gaps": np.diff(table.rows, prepend=0).tolist(),
        "truth": table.truths.tolist(),
        "errors": {int(image): int(table.top[image, 0]) for image in wrong},
        "losses": {int(image): int(table.losses[image]) for image in wrong},
        "others": table.top[:, 1:].T.tolist(),
        "rests": table.rests.T.tolist(),
        "id_start": id_start,
        "ids": [name.removeprefix(id_start) for name in table.ids],
        "probability_steps": PROBABILITY_STEPS,
        "loss_steps": LOSS_STEPS,
    }
    if table.clusters is not None:
        columns["clusters"] = table.clusters.tolist()
    return columns


def find_common_start(names: Sequence[str]) -> str:
    """Returns what all names begin with, which the first and the last one in sorted order tell."""
    first = min(names, default="")
    last = max(names, default="")
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(letter for letter, _ in shared)


def _round(values: NDArray[np.floating], steps: int) -> NDArray[np.int64]:
    return np.rint(values.astype(np.float64) * steps).astype(np.int64)
