"""Thresholds: ROC and precision-recall curves of a class, with a threshold to drag and its counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.inference.classifier import Predictions
from service.report.analysis.class_scores import compute_class_scores
from service.report.analysis.thresholds import (
    DRAWS,
    LEVEL,
    Area,
    Stops,
    choose_stops,
    compute_curve,
    estimate_areas,
)
from service.report.sections.section import Section

MAX_CLASSES = 20  # of more classes, those with the lowest F1 score are shown
MAX_STOPS = 240  # thresholds of one class, and their counts, that the page holds
ALL_STOPS = 800  # thresholds of all classes
FEWEST_STOPS = 40
FEWEST_DRAWS = 100
ALL_DRAWS = 20_000_000  # images drawn in all resamplings of all classes


@dataclass(frozen=True)
class ClassCurve:
    """The curves of one class against all others.

    Attributes:
        name: Name of the class.
        positives: Number of its images.
        negatives: Number of other images.
        roc: Area under the ROC curve (AUC).
        average_precision: Area under the precision-recall curve.
        stops: The thresholds to choose from, and their counts.
    """

    name: str
    positives: int
    negatives: int
    roc: Area
    average_precision: Area
    stops: Stops

    def data(self) -> dict[str, Any]:
        """Returns the thresholds and their counts for the script of the page."""
        return {
            "thresholds": self.stops.thresholds,
            "hits": self.stops.true_positives,
            "alarms": self.stops.false_positives,
            "positives": self.positives,
            "negatives": self.negatives,
            "start": self.stops.start,
        }

    def figures(self) -> dict[str, Any]:
        """Returns the figures of the class for the manifest."""
        return {
            "class": self.name,
            "positives": self.positives,
            "negatives": self.negatives,
            "roc_auc": asdict(self.roc),
            "average_precision": asdict(self.average_precision),
            "thresholds": self.stops.thresholds,
            "true_positives": self.stops.true_positives,
            "false_positives": self.stops.false_positives,
        }


def build_section(predictions: Predictions, classes: Sequence[str], seed: int) -> Section | None:
    """Builds the curves of both classes, or of each class against all others.

    Args:
        predictions: Predictions for the evaluated split.
        classes: Class names; labels are indices into them.
        seed: Seed of the resampling.

    Returns:
        The section; None if all images are of one class.
    """
    labels = choose_labels(predictions, len(classes))
    stops = min(MAX_STOPS, max(FEWEST_STOPS, ALL_STOPS // max(len(labels), 1)))
    draws = ALL_DRAWS // max(len(labels) * len(predictions.labels), 1)
    draws = min(DRAWS, max(FEWEST_DRAWS, draws))
    curves = []
    for label in labels.tolist():
        curve = _build_curve(predictions, label, classes[label], seed, stops, draws)
        if curve is not None:
            curves.append(curve)
    if not curves:
        return None
    has_two_classes = len(classes) == 2
    chosen = len(curves) - 1 if has_two_classes else 0  # a single unit is the probability of the last class
    values = {
        "curves": curves,
        "data": [curve.data() for curve in curves],
        "chosen": chosen,
        "has_two_classes": has_two_classes,
        "images": len(predictions.labels),
        "classes": len(classes),
        "draws": draws,
        "level": LEVEL,
        "first": curves[chosen],
    }
    figures = {
        "draws": draws,
        "seed": seed,
        "level": LEVEL,
        "classes": [curve.figures() for curve in curves],
    }
    return Section("thresholds", "Thresholds", values, figures)


def choose_labels(predictions: Predictions, class_count: int) -> NDArray[np.int64]:
    """Chooses the classes with curves: all of them, or those with the lowest F1 score.

    Args:
        predictions: Predictions for the evaluated split.
        class_count: Number of classes.
    """
    if class_count <= MAX_CLASSES:
        return np.arange(class_count)
    scores = compute_class_scores(predictions.labels, predictions.classes, class_count)
    # Without images of a class, it has no curve.
    order = np.lexsort((np.nan_to_num(scores.f1), scores.images == 0))
    return np.sort(order[:MAX_CLASSES])


def _build_curve(
    predictions: Predictions, label: int, name: str, seed: int, stops: int, draws: int
) -> ClassCurve | None:
    scores = predictions.probabilities[:, label]
    is_positive = predictions.labels == label
    curve = compute_curve(scores, is_positive)
    areas = estimate_areas(scores, is_positive, seed, draws)
    if curve is None or areas is None:
        return None
    roc, average_precision = areas
    return ClassCurve(
        name, curve.positives, curve.negatives, roc, average_precision, choose_stops(curve, stops)
    )
