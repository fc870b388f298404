"""Confusion matrix: numbers of images by true and predicted class, and the most frequent mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.inference.classifier import Predictions
from service.report.sections.section import Section
from service.scores import confusion_matrix

MATRIX_CLASSES = 40  # largest number of classes for which the matrix itself is shown
SHARE_CLASSES = 12  # largest number of classes for which cells also state their share
PAIRS = 30  # number of confused pairs in the table


def build_section(predictions: Predictions, classes: Sequence[str]) -> Section:
    """Builds the confusion matrix, and a table of the most frequent mistakes.

    Args:
        predictions: Predictions for the evaluated split.
        classes: Class names; labels are indices into them.
    """
    matrix = confusion_matrix(predictions.labels, predictions.classes, len(classes))
    precision, recall = compute_precision_recall(matrix)
    images_per_class = matrix.sum(axis=1)
    pairs = [
        {
            "truth": classes[truth],
            "predicted": classes[predicted],
            "labels": (truth, predicted),
            "times": times,
            "share": times / int(images_per_class[truth]),
        }
        for truth, predicted, times in find_most_confused(matrix, PAIRS)
    ]
    shares = compute_shares(matrix)
    largest_mistake = float(np.where(np.eye(len(classes)), 0, shares).max())
    has_matrix = len(classes) <= MATRIX_CLASSES
    values = {
        "names": classes,
        "rows": _build_rows(matrix, shares, largest_mistake, classes) if has_matrix else None,
        "has_shares": len(classes) <= SHARE_CLASSES,
        "largest_mistake": largest_mistake,
        "pairs": pairs,
    }
    sparse = [
        [int(truth), int(predicted), int(matrix[truth, predicted])]
        for truth, predicted in np.argwhere(matrix)
    ]
    figures = {
        "classes": list(classes),
        "counts": sparse,
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "most_confused": [{key: pair[key] for key in ("truth", "predicted", "times")} for pair in pairs],
        "largest_mistake": largest_mistake,
    }
    return Section("confusion", "Confusion matrix", values, figures)


def compute_precision_recall(
    matrix: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Computes precision and recall of every class.

    Args:
        matrix: int64 `[K, K]`, rows are true classes, columns predicted ones.

    Returns:
        Precision and recall, float64 `[K]` each; NaN for a class that was never predicted, or has no images.
    """
    correct = np.diag(matrix).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return correct / matrix.sum(axis=0), correct / matrix.sum(axis=1)


def find_most_confused(matrix: NDArray[np.int64], count: int) -> list[tuple[int, int, int]]:
    """Finds the most frequent mistakes.

    Args:
        matrix: int64 `[K, K]`, rows are true classes, columns predicted ones.
        count: Number of pairs, at most.

    Returns:
        True class, predicted class and number of images, the most frequent pair first; never a pair without
        images.
    """
    mistakes = matrix.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
    pairs = []
    for flat_index in order.tolist():
        truth, predicted = divmod(flat_index, len(matrix))
        times = int(mistakes[truth, predicted])
        if times:
            pairs.append((truth, predicted, times))
    return pairs


def compute_shares(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divides each row of a confusion matrix by its images, float64 `[K, K]`; 0 without images."""
    shares: NDArray[np.float64] = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return shares


def _build_rows(
    matrix: NDArray[np.int64], shares: NDArray[np.float64], largest_mistake: float, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns the rows of the matrix for the page: count, share of the true class, and shade of every cell.

    The diagonal is shaded by its share. Mistakes have a scale of their own, from 0 to the largest share of
    any mistake; shades grow with the square root of the share, so that small ones are visible.
    """
    scale = max(largest_mistake, np.finfo(np.float64).tiny)
    shades = np.where(np.eye(len(matrix)), shares, np.sqrt(shares / scale))
    rows = []
    for truth, name in enumerate(classes):
        cells = [
            {
                "count": int(matrix[truth, predicted]),
                "share": float(shares[truth, predicted]),
                "shade": float(np.clip(shades[truth, predicted], 0, 1)),
                "is_correct": truth == predicted,
            }
            for predicted in range(len(classes))
        ]
        rows.append({"name": name, "cells": cells})
    return rows
