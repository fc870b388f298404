"""Selects the examples: the few images of the evaluated split that report sections examine closely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.errors import ConfigError
from service.inference.classifier import Predictions
from service.report.analysis.images import Images
from service.report.options import ReportOptions

# Up to this number of classes, heatmaps explain all of them.
MAX_ALL_CLASSES = 4
# Number of most probable classes that heatmaps explain if there are more.
TOP_CLASSES = 3


@dataclass(frozen=True)
class ReportExample:
    """An image that the report examines closely.

    Attributes:
        row: Row of the image in its split; None for an image from a file.
        pixels: uint8 `[H, W, C]`.
        truth: Label of the true class; None if it is not known.
        predicted: Label of the most probable class.
        probability: Probability of the predicted class.
        classes: Labels of the classes that heatmaps explain, int `[M]`.
        name: Short description of the image for alternative texts.
        file: Name of the file that the image comes from; empty for an image of a shard set.
    """

    row: int | None
    pixels: np.ndarray
    truth: int | None
    predicted: int
    probability: float
    classes: np.ndarray
    name: str
    file: str = ""

    @property
    def title(self) -> str:
        """What identifies the image: `row 17`, or the name of its file."""
        return self.file if self.row is None else f"row {self.row}"


def choose_examples(predictions: Predictions, count: int) -> np.ndarray:
    """Chooses examples from each class in turn: the most confident correct prediction, else the least wrong.

    Args:
        predictions: Predictions for the whole split.
        count: Number of examples, at most.

    Returns:
        Indices into the predictions, int64 `[<= count]`.
    """
    rows = np.arange(len(predictions.labels))
    probability_of_truth = predictions.probabilities[rows, predictions.labels]
    is_correct = predictions.classes == predictions.labels
    best_first = np.lexsort((-probability_of_truth, ~is_correct))
    # Rank of every image within its class.
    ranks = np.empty(len(best_first), np.int64)
    for label in np.unique(predictions.labels):
        members = best_first[predictions.labels[best_first] == label]
        ranks[members] = np.arange(len(members))
    return np.lexsort((predictions.labels, ranks))[:count]


def choose_classes(probabilities: np.ndarray, truth: int | None) -> np.ndarray:
    """Chooses the classes that the heatmaps of an image explain.

    Args:
        probabilities: Predicted probabilities of the image, float `[K]`.
        truth: Label of the true class; None if it is not known.

    Returns:
        int64 `[M]`: all classes in order if there are few, else the most probable ones; if the true class is
        not among them, it replaces the last one.
    """
    if len(probabilities) <= MAX_ALL_CLASSES:
        return np.arange(len(probabilities))
    best = np.argsort(-probabilities, kind="stable")[:TOP_CLASSES]
    if truth is not None and truth not in best:
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
        options: Number of examples, or their rows.

    Raises:
        ConfigError: `options.activation_rows` names a row that the split does not have.
    """
    indices = _select_indices(predictions, images.split, options)
    rows = predictions.rows[indices]
    pixels = images.read(rows.tolist()) if len(rows) else np.zeros(0, np.uint8)
    examples = []
    for index, row, image in zip(indices, rows, pixels, strict=True):
        probabilities = predictions.probabilities[index]
        truth = int(predictions.labels[index])
        examples.append(build_row_example(int(row), image, truth, probabilities, images.split, classes))
    return tuple(examples)


def build_row_example(
    row: int, pixels: np.ndarray, truth: int, probabilities: np.ndarray, split: str, classes: Sequence[str]
) -> ReportExample:
    """Builds the example of an image of a shard set.

    Args:
        row: Row of the image in its split.
        pixels: uint8 `[H, W, C]`.
        truth: Label of the true class.
        probabilities: Predicted probabilities, float `[K]`.
        split: Name of the split.
        classes: Class names; labels are indices into them.
    """
    return _build_example(pixels, truth, probabilities, f"{split} image {row}, {classes[truth]}", row=row)


def build_file_example(
    file: str, pixels: np.ndarray, truth: int | None, probabilities: np.ndarray, classes: Sequence[str]
) -> ReportExample:
    """Builds the example of an image from a file.

    Args:
        file: Name of the file.
        pixels: uint8 `[H, W, C]`.
        truth: Label of the true class; None if it is not known.
        probabilities: Predicted probabilities, float `[K]`.
        classes: Class names; labels are indices into them.
    """
    name = f"image {file}" if truth is None else f"image {file}, {classes[truth]}"
    return _build_example(pixels, truth, probabilities, name, file=file)


def _build_example(
    pixels: np.ndarray,
    truth: int | None,
    probabilities: np.ndarray,
    name: str,
    row: int | None = None,
    file: str = "",
) -> ReportExample:
    """Builds an example from the probabilities of its image, float `[K]`."""
    predicted = int(probabilities.argmax())
    return ReportExample(
        row=row,
        pixels=pixels,
        truth=truth,
        predicted=predicted,
        probability=float(probabilities[predicted]),
        classes=choose_classes(probabilities, truth),
        name=name,
        file=file,
    )


def _select_indices(predictions: Predictions, split: str, options: ReportOptions) -> np.ndarray:
    """Selects the indices of the examples in the predictions, int64 `[N]`."""
    if options.activation_rows is None:
        return choose_examples(predictions, max(options.activation_images, options.heatmap_images))
    index_of_row = {int(row): index for index, row in enumerate(predictions.rows)}
    for row in options.activation_rows:
        if row not in index_of_row:
            raise ConfigError(
                f"rows from 0 to {len(index_of_row) - 1}",
                f"activation_rows={row}",
                f"pick rows of the {split} split",
            )
    return np.array([index_of_row[row] for row in options.activation_rows], np.int64)
