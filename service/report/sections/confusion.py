"""The confusion matrix: which classes are taken for which, and how well each is found."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.report.drawing.album import Album
from service.report.subject import Section, Subject
from service.scores import confusion_matrix

LARGEST, PAIRS, WORST = (
    20,
    30,
    100,
)  # classes of a matrix that is shown whole; pairs shown of a larger one; classes in the table
SHADES = 10


def scores(matrix: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How well every class is found.

    Args:
        matrix: int `[K, K]`, rows are true classes.

    Returns:
        Precision and recall, float64 `[K]` each; NaN where a class was never named, or is not there.
    """
    right = np.diag(matrix).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return right / matrix.sum(axis=0), right / matrix.sum(axis=1)


def most_confused(matrix: NDArray[np.int64], count: int) -> list[tuple[int, int, int]]:
    """The commonest mistakes: true class, class it was taken for, how often; the commonest first, none that never happened."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    places = [divmod(int(place), len(matrix)) for place in order]
    return [(truth, said, int(wrong[truth, said])) for truth, said in places if wrong[truth, said]]


def build_section(subject: Subject, album: Album) -> Section:
    """The matrix of the judged split, precision and recall of every class, and the commonest mistakes."""
    judged, names = subject.predictions, subject.classes
    matrix = confusion_matrix(judged.labels, judged.classes, len(names))
    precision, recall = scores(matrix)
    counts, named = matrix.sum(axis=1), matrix.sum(axis=0)
    classes = [
        {
            "name": name,
            "images": int(counts[k]),
            "named": int(named[k]),
            "precision": float(precision[k]),
            "recall": float(recall[k]),
        }
        for k, name in enumerate(names)
    ]
    pairs = [
        {"truth": names[a], "said": names[b], "times": times} for a, b, times in most_confused(matrix, PAIRS)
    ]
    hardest_first = sorted(classes, key=lambda row: (np.isnan(row["recall"]), row["recall"]))
    values = {
        "split": subject.evaluation.split,
        "names": names,
        "rows": _rows(matrix, names) if len(names) <= LARGEST else None,
        "classes": classes if len(names) <= LARGEST else hardest_first[:WORST],
        "left_out": max(0, len(names) - WORST),
        "pairs": pairs,
    }
    sparse = [[int(a), int(b), int(matrix[a, b])] for a, b in np.argwhere(matrix)]
    figures = {
        "classes": list(names),
        "counts": sparse,
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "most_confused": pairs,
    }
    return Section("confusion", "Confusion matrix", values, figures)


def _rows(matrix: NDArray[np.int64], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The matrix for the page: every cell with its share of the true class, and that as one of ten shades."""
    rows = []
    for name, counts in zip(names, matrix.tolist(), strict=True):
        shares = [count / max(sum(counts), 1) for count in counts]
        cells = [
            {"count": count, "share": share, "shade": int(np.ceil(share * SHADES))}
            for count, share in zip(counts, shares, strict=True)
        ]
        rows.append({"name": name, "cells": cells})
    return rows
