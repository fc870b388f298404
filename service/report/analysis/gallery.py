"""The table of the gallery: which images it shows, and their predictions, encoded compactly for the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.report.analysis.clusters import NO_CLUSTER
from service.report.packing import deflate
from service.scores import losses

if TYPE_CHECKING:  # it loads Keras, which the table does not need
    from service.inference.classifier import Predictions

PROBABILITY_STEPS = 10_000  # probabilities are rounded to 0.01 %
LOSS_STEPS = 4_000  # losses are rounded to 0.00025 nats; the largest, -log(1e-7), still takes two bytes
# What the table holds, the most first: number of classes with a probability, and whether it has ids.
DETAILS = ((3, True), (2, True), (2, False), (1, False))


@dataclass(frozen=True)
class GalleryTable:
    """The images of the gallery, in ascending order of their rows.

    Attributes:
        rows: int64 `[N]`, row numbers of the images in their split.
        truths: int64 `[N]`, labels of the true classes.
        classes: Number of classes.
        top: int64 `[N, T]`, labels of the most probable classes, the predicted one first.
        rests: int64 `[N, T]`, what a class and the more probable ones leave of 1, in steps of
            1 / `PROBABILITY_STEPS`: falling along each row. The probability of a class is the difference to
            the class before.
        losses: int64 `[N]`, losses in steps of 1 / `LOSS_STEPS` nats; 0 for a correct prediction, whose loss
            follows from its probability.
        clusters: int64 `[N]`, clusters of the images, or `NO_CLUSTER`; None if there are none.
        ids: Names of the images in their source; None to leave them out.
    """

    rows: NDArray[np.int64]
    truths: NDArray[np.int64]
    classes: int
    top: NDArray[np.int64]
    rests: NDArray[np.int64]
    losses: NDArray[np.int64]
    clusters: NDArray[np.int64] | None = None
    ids: Sequence[str] | None = None


@dataclass(frozen=True)
class EncodedTable:
    """The table of a gallery as the page holds it.

    Attributes:
        indices: int64 `[N]`, the images in the table as indices into the predictions.
        content: The number of images (`count`), name and width in bytes of each column (`columns`), and all
            values (`data`), see `encode_table`.
    """

    indices: NDArray[np.int64]
    content: dict[str, Any]


def fit_table(
    predictions: Predictions,
    clusters: NDArray[np.int64] | None,
    read_ids: Callable[[Sequence[int]], list[str]],
    max_images: int,
    max_bytes: int,
) -> EncodedTable:
    """Encodes as much as fits: less probable classes and ids are left out before images.

    Args:
        predictions: Predictions for the whole split.
        clusters: int64 `[N]`, clusters of these images; None without clusters.
        read_ids: Reads the names of some rows.
        max_images: Largest number of images in the table.
        max_bytes: Largest length of the encoded values.
    """
    count = min(max_images, len(predictions.labels))
    while True:
        indices = select_images(predictions, count)
        ids = read_ids(predictions.rows[indices].tolist())
        for top, has_ids in DETAILS:
            table = build_table(predictions, indices, clusters, ids if has_ids else None, top)
            content = encode_table(table)
            if len(content["data"]) <= max_bytes:
                return EncodedTable(indices, content)
        # The length is nearly proportional to the number of images.
        count = min(count - 1, int(0.97 * count * max_bytes / len(content["data"])))


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
    ids: Sequence[str] | None,
    top: int,
) -> GalleryTable:
    """Builds the table of some images.

    Args:
        predictions: Predictions for the whole split.
        indices: Images as indices into the predictions, in ascending order of their rows.
        clusters: Clusters of all images of the split; None without clusters.
        ids: Names of the selected images; None to leave them out.
        top: Number of most probable classes, at most.
    """
    probabilities = predictions.probabilities[indices]
    truths = predictions.labels[indices]
    most_probable = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    sums = np.take_along_axis(probabilities, most_probable, axis=1).astype(np.float64).cumsum(axis=1)
    is_correct = most_probable[:, 0] == truths
    return GalleryTable(
        rows=predictions.rows[indices],
        truths=truths.astype(np.int64),
        classes=probabilities.shape[1],
        top=most_probable,
        rests=np.maximum(_round(1 - sums, PROBABILITY_STEPS), 0),
        losses=np.where(is_correct, 0, _round(losses(probabilities, truths), LOSS_STEPS)),
        clusters=None if clusters is None else clusters[indices],
        ids=ids,
    )


def encode_table(table: GalleryTable) -> dict[str, Any]:
    """Encodes a table as text: columns of unsigned integers, deflated, in base64.

    A column of values of two or four bytes is stored as the low bytes of all images, then their next bytes,
    and so on, which compresses better. Rows are stored as differences to the row before, the predicted class
    as its difference to the true one modulo the number of classes, and ids as UTF-8 without the bytes that
    they share with the id before: numbers of shared and of other bytes are columns, the other bytes of all
    ids follow the last column.

    Returns:
        `count`, the number of images; `classes`, the number of classes; `columns`, name and bytes per value
        of each; `data`, the text; `probability_steps` and `loss_steps`, the values that stand for 1.
    """
    columns = {"gap": np.diff(table.rows, prepend=0), "truth": table.truths}
    columns["shift"] = (table.top[:, 0] - table.truths) % table.classes
    for place in range(table.top.shape[1]):
        if place:
            columns[f"class{place}"] = table.top[:, place]
        columns[f"rest{place}"] = table.rests[:, place]
    columns["loss"] = table.losses
    if table.clusters is not None:
        columns["cluster"] = table.clusters - NO_CLUSTER  # 0 is no cluster
    text = b""
    if table.ids is not None:
        prefixes, suffixes = _split_prefixes(table.ids)
        columns["prefix"] = np.array(prefixes, np.int64)
        columns["suffix"] = np.array([len(suffix) for suffix in suffixes], np.int64)
        text = b"".join(suffixes)
    widths = {name: _choose_width(values) for name, values in columns.items()}
    planes = [_split_bytes(values, widths[name]) for name, values in columns.items()]
    return {
        "count": len(table.rows),
        "classes": table.classes,
        "probability_steps": PROBABILITY_STEPS,
        "loss_steps": LOSS_STEPS,
        "columns": [[name, width] for name, width in widths.items()],
        "data": deflate(b"".join([*planes, text])),
    }


def _round(values: NDArray[np.floating], steps: int) -> NDArray[np.int64]:
    return np.rint(values.astype(np.float64) * steps).astype(np.int64)


def _choose_width(values: NDArray[np.int64]) -> int:
    """Returns the number of bytes that hold all values of a column: 1, 2 or 4."""
    largest = int(values.max(initial=0))
    return next(width for width in (1, 2, 4) if largest < 256**width)


def _split_bytes(values: NDArray[np.int64], width: int) -> bytes:
    """Returns the lowest bytes of all values, then their next bytes, and so on."""
    return values.astype(f"<u{width}").view(np.uint8).reshape(len(values), width).T.tobytes()


def _split_prefixes(ids: Sequence[str]) -> tuple[list[int], list[bytes]]:
    """Splits ids into the number of bytes they share with the id before, and their other bytes."""
    prefixes = []
    suffixes = []
    previous = b""
    for name in ids:
        encoded = name.encode(errors="replace")
        shared = _count_shared(previous, encoded)
        prefixes.append(shared)
        suffixes.append(encoded[shared:])
        previous = encoded
    return prefixes, suffixes


def _count_shared(first: bytes, second: bytes) -> int:
    """Returns the number of bytes at the beginning that are the same in both."""
    for place, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return place
    return min(len(first), len(second))
