"""Embedding: a map of the evaluated images in which those that the model finds similar are close."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.inference.classifier import Features, Predictions
from service.report.analysis.embedding import Embedding
from service.report.drawing.formatting import percent
from service.report.sections.section import Section

STEPS = 4095  # positions are rounded to this many steps per side: 12 bits
MARGIN = 0.03  # of the side, around the points
FLATTEST = 0.45  # least ratio of height to width of the plot
SMALL_LABELS = 256  # number of classes whose labels fit in one byte
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
    values = {
        "method": embedding.method,
        "images": len(labels),
        "all_images": len(predictions.labels),
        "size": features.values.shape[1],
        "layer": features.layer,
        "explained": explained,
        "agreement": agreement,
        "neighbours": NEIGHBOURS,
        "wrong": int((labels != predicted).sum()),
        "classes": list(classes),
        "description": describe(embedding, labels, predicted),
        "data": encode(embedding.positions, labels, predicted, rows, classes, split),
    }
    figures: dict[str, Any] = {
        "method": embedding.method,
        "layer": features.layer,
        "features": features.values.shape[1],
        "images": len(labels),
        "explained_variance": explained,
        "neighbours_of_same_class": agreement,
        "points": {
            "row": rows.tolist(),
            "x": np.round(embedding.positions[:, 0], 4).tolist(),
            "y": np.round(embedding.positions[:, 1], 4).tolist(),
        },
    }
    return Section("embedding", "Map of the images", values, figures)


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
    """Encodes points for the script of the page, in five bytes each for up to 256 classes.

    Args:
        positions: float64 `[n, 2]`.
        labels: True classes, int32 `[n]`.
        predicted: Predicted classes, int32 `[n]`.
        rows: Rows of the images, int64 `[n]`, ascending.
        classes: Class names.
        split: Name of the split.

    Returns:
        `points`, base64 of 12 bits for x and y (from the top) in `STEPS`, then true and predicted class in
        `label_bytes` each, little endian; `ratio` of height to width of the plot; `gaps` between the rows,
        each with the number of its repetitions.
    """
    low = positions.min(axis=0)
    high = positions.max(axis=0)
    # One scale for both axes, so that distances can be compared.
    width = max(high[0] - low[0], high[1] - low[1])
    size = np.array([width, max(high[1] - low[1], FLATTEST * width)])
    unit = (positions - (low + high) / 2) / size * (1 - 2 * MARGIN) + 0.5
    x, y = np.rint(unit * STEPS).astype(np.uint32).T
    packed = x | ((STEPS - y) << 12)
    label_type = np.dtype("u1") if len(classes) <= SMALL_LABELS else np.dtype("<u2")
    columns = [
        packed.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3],
        labels.astype(label_type).view(np.uint8).reshape(len(labels), -1),
        predicted.astype(label_type).view(np.uint8).reshape(len(labels), -1),
    ]
    gaps = np.diff(rows, prepend=-1)
    starts = np.flatnonzero(np.append(True, gaps[1:] != gaps[:-1]))
    lengths = np.diff(np.append(starts, len(gaps)))
    return {
        "points": base64.b64encode(np.concatenate(columns, axis=1).tobytes()).decode(),
        "ratio": round(float(size[1] / size[0]), 3),
        "label_bytes": label_type.itemsize,
        "gaps": [[int(gaps[start]), int(length)] for start, length in zip(starts, lengths, strict=True)],
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
