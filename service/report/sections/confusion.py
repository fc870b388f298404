"""Confusion matrix: numbers of images by true and predicted class, with precision and recall per class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.inference.classifier import Predictions
from service.report.sections.section import Section
from service.scores import confusion_matrix

MATRIX_CLASSES = 20  # largest number of classes for which the matrix itself is shown
PAIRS = 30  # number of confused pairs in the table
TABLE_CLASSES = 100  # number of classes in the table, those with the lowest recall, without the matrix
SHADES = 10


def build_section(predictions: Predictions, classes: Sequence[str]) -> Section:
    """Builds the confusion matrix, precision and recall per class, and the most frequent mistakes.

    Args:
        predictions: Predictions for the evaluated split.
        classes: Class names; labels are indices into them.
    """
    matrix = confusion_matrix(predictions.labels, predictions.classes, len(classes))
    precision, recall = compute_precision_recall(matrix)
    images_per_class = matrix.sum(axis=1)
    predicted_per_class = matrix.sum(axis=0)
    scores = [
        {
            "name": name,
            "images": int(images_per_class[k]),
            "predicted": int(predicted_per_class[k]),
            "precision": float(precision[k]),
            "recall": float(recall[k]),
        }
        for k, name in enumerate(classes)
    ]
    pairs = [
        {"truth": classes[truth], "predicted": classes[predicted], "times": times}
        for truth, predicted, times in find_most_confused(matrix, PAIRS)
    ]
    lowest_recall_first = sorted(scores, key=lambda row: (np.isnan(row["recall"]), row["recall"]))
    fits_on_page = len(classes) <= MATRIX_CLASSES
    values = {
        "names": classes,
        "rows": _matrix_rows(matrix, classes) if fits_on_page else None,
        "classes": scores if fits_on_page else lowest_recall_first[:TABLE_CLASSES],
        "omitted": max(0, len(classes) - TABLE_CLASSES),
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
        "most_confused": pairs,
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


def _matrix_rows(matrix: NDArray[np.int64], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the rows of the matrix for the page, each cell with its share of the true class and a shade."""
    rows = []
    for name, counts in zip(classes, matrix.tolist(), strict=True):
        total = max(sum(counts), 1)
        cells = []
        for count in counts:
            share = count / total
            cells.append({"count": count, "share": share, "shade": int(np.ceil(share * SHADES))})
        rows.append({"name": name, "cells": cells})
    return rows
