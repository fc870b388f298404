"""Embedding: a map of the evaluated images in which those that the model finds similar are close."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.inference.classifier import Features, Predictions
from service.report.analysis.embedding import Embedding
from service.report.drawing.formatting import percent
from service.report.sections.section import Section

MAX_POINTS = 1_500  # images on the page
STEPS = 1_000  # positions are rounded to this many steps per side
MARGIN = 0.03  # of the side, around the points
FLATTEST = 0.45  # least ratio of height to width of the plot
NEIGHBOURS = 10
MAX_COMPARED = 2_000  # images whose neighbours are counted


def build_section(
    predictions: Predictions,
    features: Features,
    embedding: Embedding | None,
    classes: Sequence[str],
    split: str,
) -> Section | None:
    """Builds a scatter plot of images, coloured by class or by whether they are predicted correctly.

    Args:
        predictions: Predictions for the evaluated split.
        features: Features of some of these images.
        embedding: Positions of the images with features; None if there are too few.
        classes: Class names; labels are indices into them.
        split: Name of the evaluated split.

    Returns:
        The section; None without an embedding.
    """
    if embedding is None:
        return None
    labels = predictions.labels[features.indices]
    predicted = predictions.classes[features.indices]
    rows = predictions.rows[features.indices]
    agreement = measure_agreement(features.values, labels)
    explained = None if embedding.explained is None else embedding.explained.tolist()
    shown = choose_points(labels != predicted)
    values = {
        "method": embedding.method,
        "images": len(shown),
        "placed": len(labels),
        "all_images": len(predictions.labels),
        "size": features.values.shape[1],
        "layer": features.layer,
        "explained": explained,
        "agreement": agreement,
        "neighbours": NEIGHBOURS,
        "classes": list(classes),
        "description": describe(embedding, labels[shown], predicted[shown]),
        "data": encode(
            embedding.positions[shown], labels[shown], predicted[shown], rows[shown], classes, split
        ),
    }
    figures: dict[str, Any] = {
        "method": embedding.method,
        "layer": features.layer,
        "features": features.values.shape[1],
        "images": len(labels),
        "shown": len(shown),
        "explained_variance": explained,
        "neighbours_of_same_class": agreement,
        "points": {
            "row": rows.tolist(),
            "x": np.round(embedding.positions[:, 0], 4).tolist(),
            "y": np.round(embedding.positions[:, 1], 4).tolist(),
        },
    }
    return Section("embedding", "Map of the images", values, figures)


def choose_points(is_wrong: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Chooses the images on the page: incorrect predictions first, then correct ones, evenly spaced.

    Args:
        is_wrong: Whether each image is predicted incorrectly, bool `[n]`.

    Returns:
        At most `MAX_POINTS` indices, ascending.
    """
    wrong = _space_evenly(np.flatnonzero(is_wrong), MAX_POINTS)
    correct = _space_evenly(np.flatnonzero(~is_wrong), MAX_POINTS - len(wrong))
    return np.sort(np.concatenate([wrong, correct]))


def _space_evenly(indices: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Takes at most `count` of the indices, evenly spaced."""
    if len(indices) <= count:
        return indices
    return indices[np.arange(count) * len(indices) // count]


def measure_agreement(features: NDArray[np.float32], labels: NDArray[np.int32]) -> float:
    """Measures how far the features separate the classes: the share of neighbours that have the same class.

    Args:
        features: float32 `[n, F]`.
        labels: True classes, int32 `[n]`.

    Returns:
        The mean share among the nearest `NEIGHBOURS` images by Euclidean distance, of the first
        `MAX_COMPARED` images evenly spaced.
    """
    step = -(-len(labels) // MAX_COMPARED)
    x = features[::step].astype(np.float64)
    y = labels[::step]
    x = x - x.mean(axis=0)
    squares = np.square(x).sum(axis=1)
    distances = squares[:, None] + squares - 2 * (x @ x.T)
    np.fill_diagonal(distances, np.inf)
    count = min(NEIGHBOURS, len(y) - 1)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return float((y[nearest] == y[:, None]).mean())


def encode(
    positions: NDArray[np.float64],
    labels: NDArray[np.int32],
    predicted: NDArray[np.int32],
    rows: NDArray[np.int64],
    classes: Sequence[str],
    split: str,
) -> dict[str, Any]:
    """Encodes points for the script of the page, in columns that compress well.

    Args:
        positions: float64 `[n, 2]`.
        labels: True classes, int32 `[n]`.
        predicted: Predicted classes, int32 `[n]`.
        rows: Rows of the images, int64 `[n]`, ascending.
        classes: Class names; labels are indices into them.
        split: Name of the split.

    Returns:
        `x` and `y` (from the top) in `steps` per side, `truth`, the true class, and `gaps`, the differences
        between the rows, of each point; `errors`, the predicted class by index of an incorrect point;
        `ratio` of height to width of the plot; `classes` and `split`.
    """
    low = positions.min(axis=0)
    high = positions.max(axis=0)
    # One scale for both axes, so that distances can be compared.
    width = max(high[0] - low[0], high[1] - low[1])
    size = np.array([width, max(high[1] - low[1], FLATTEST * width)])
    unit = (positions - (low + high) / 2) / size * (1 - 2 * MARGIN) + 0.5
    x, y = np.rint(unit * STEPS).astype(int).T
    wrong = np.flatnonzero(labels != predicted)
    return {
        "steps": STEPS,
        "x": x.tolist(),
        "y": (STEPS - y).tolist(),
        "truth": labels.tolist(),
        "errors": {int(index): int(predicted[index]) for index in wrong},
        "gaps": np.diff(rows, prepend=0).tolist(),
        "ratio": round(float(size[1] / size[0]), 3),
        "classes": list(classes),
        "split": split,
    }


def describe(embedding: Embedding, labels: NDArray[np.int32], predicted: NDArray[np.int32]) -> str:
    """Describes the plot in a sentence for those who cannot see it.

    Args:
        embedding: Positions of the images.
        labels: True classes, int32 `[n]`.
        predicted: Predicted classes, int32 `[n]`.
    """
    wrong = int((labels != predicted).sum())
    name = "t-SNE"
    if embedding.explained is not None:
        name = f"PCA, {percent(float(embedding.explained.sum()), 0)} of the variance"
    return f"Scatter plot ({name}) of {len(labels):,} images, of which {wrong:,} are predicted incorrectly"
