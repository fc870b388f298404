"""Scores by class: precision, recall and F1 of every class, on a scale on which 1 % is visible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.inference.classifier import Predictions
from service.report.analysis.class_scores import ClassScores, compute_class_scores
from service.report.sections.section import Section

ALL_CLASSES = 30  # of more classes, only some are shown at once
WORST_CLASSES = 20


@dataclass(frozen=True)
class ClassRow:
    """Scores of one class, for the template.

    Attributes:
        label: Index of the class.
        name: Name of the class.
        images: Number of its images.
        predicted: Number of images that were predicted to be of it.
        correct: Number of its images that were predicted to be of it.
        precision: Share of the predicted images that are of the class; NaN if there are none.
        precision_interval: 95 % confidence interval.
        recall: Share of the images of the class that were predicted to be of it; NaN if there are none.
        recall_interval: 95 % confidence interval.
        f1: Harmonic mean of precision and recall; NaN if there is neither.
    """

    label: int
    name: str
    images: int
    predicted: int
    correct: int
    precision: float
    precision_interval: tuple[float, float]
    recall: float
    recall_interval: tuple[float, float]
    f1: float


def build_section(predictions: Predictions, classes: Sequence[str]) -> Section | None:
    """Builds the table of all classes, of many classes the worst ones and the others on request.

    Args:
        predictions: Predictions for the evaluated split.
        classes: Class names; labels are indices into them.

    Returns:
        The section; None without images.
    """
    if not len(predictions.labels):
        return None
    scores = compute_class_scores(predictions.labels, predictions.classes, len(classes))
    order = np.arange(len(classes))
    rest: list[int] = []
    if len(classes) > ALL_CLASSES:
        order = sort_worst_first(scores)
        rest = order[WORST_CLASSES:].tolist()
        order = order[:WORST_CLASSES]
    rows = [_make_row(scores, label, classes[label]) for label in order.tolist()]
    low = choose_scale(rows)
    values = {
        "rows": rows,
        "low": low,
        "ticks": [low + (1 - low) * step / 4 for step in range(5)],
        "rest": [
            [label, classes[label], *(int(counts[label]) for counts in _list_counts(scores))]
            for label in rest
        ],
        "classes": len(classes),
        "summary": summarize(scores, classes),
    }
    figures: dict[str, Any] = {
        "classes": list(classes),
        "images": scores.images.tolist(),
        "predicted": scores.predicted.tolist(),
        "correct": scores.correct.tolist(),
        "precision": scores.precision.tolist(),
        "precision_interval": [bound.tolist() for bound in scores.precision_interval],
        "recall": scores.recall.tolist(),
        "recall_interval": [bound.tolist() for bound in scores.recall_interval],
        "f1": scores.f1.tolist(),
        "macro_f1": compute_macro_f1(scores),
    }
    return Section("class_scores", "Scores by class", values, figures)


def sort_worst_first(scores: ClassScores) -> NDArray[np.int64]:
    """Sorts classes by their F1 score, the lowest first; those without images are last.

    Args:
        scores: Scores of all classes.
    """
    return np.lexsort((np.nan_to_num(scores.f1), scores.images == 0))


def choose_scale(rows: Sequence[ClassRow]) -> float:
    """Chooses the lower end of the scale of the bars, so that small differences are visible.

    Args:
        rows: Scores of the classes that are shown.

    Returns:
        A multiple of 0.05, or of 0.01 above 0.95, at most the lowest score; 0 without scores.
    """
    lowest = min((value for row in rows for value in (row.precision, row.recall) if value >= 0), default=0.0)
    if lowest > 0.95:
        return min(math.floor(lowest * 100 - 0.5) / 100, 0.98)
    return max(math.floor(lowest * 20 - 0.5) / 20, 0.0)


def compute_macro_f1(scores: ClassScores) -> float:
    """Computes the mean F1 score of the classes that have images."""
    return float(scores.f1[scores.images > 0].mean())


def summarize(scores: ClassScores, classes: Sequence[str]) -> str:
    """Summarizes in a sentence which classes are recognized best and worst.

    Args:
        scores: Scores of all classes.
        classes: Class names in the order of the scores.
    """
    with_images = np.flatnonzero(scores.images)
    by_recall = with_images[np.argsort(scores.recall[with_images], kind="stable")]
    worst = int(by_recall[0])
    best = int(by_recall[-1])
    if scores.recall[worst] == scores.recall[best]:
        return "All classes are recognized equally often."
    return (
        f"“{classes[best]}” is recognized most often ({scores.recall[best]:.1%} of its images), "
        f"“{classes[worst]}” least often ({scores.recall[worst]:.1%})."
    )


def _list_counts(scores: ClassScores) -> tuple[NDArray[np.int64], ...]:
    return scores.images, scores.predicted, scores.correct


def _make_row(scores: ClassScores, label: int, name: str) -> ClassRow:
    return ClassRow(
        label=label,
        name=name,
        images=int(scores.images[label]),
        predicted=int(scores.predicted[label]),
        correct=int(scores.correct[label]),
        precision=float(scores.precision[label]),
        precision_interval=_select(scores.precision_interval, label),
        recall=float(scores.recall[label]),
        recall_interval=_select(scores.recall_interval, label),
        f1=float(scores.f1[label]),
    )


def _select(bounds: tuple[NDArray[np.float64], NDArray[np.float64]], label: int) -> tuple[float, float]:
    return float(bounds[0][label]), float(bounds[1][label])
