"""Scores of every class: precision, recall and F1 with confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.scores import wilson_interval

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class ClassScores:
    """Scores of K classes.

    Attributes:
        images: Number of images of the class (its support), int64 `[K]`.
        predicted: Number of images that were predicted to be of the class, int64 `[K]`.
        correct: Number of images of the class that were predicted to be of it, int64 `[K]`.
        precision: Share of the predicted images that are of the class, float64 `[K]`; NaN if there are none.
        recall: Share of the images of the class that were predicted to be of it: the accuracy within the
            class, float64 `[K]`; NaN if there are none.
        f1: Harmonic mean of precision and recall, float64 `[K]`; 0 if no prediction is correct, NaN for a
            class
            that has neither images nor predictions.
        precision_interval: 95 % confidence intervals (Wilson, 1927), float64 `[K]` each.
        recall_interval: 95 % confidence intervals, float64 `[K]` each.
    """

    images: Counts
    predicted: Counts
    correct: Counts
    precision: Floats
    recall: Floats
    f1: Floats
    precision_interval: tuple[Floats, Floats]
    recall_interval: tuple[Floats, Floats]


def compute_class_scores(
    labels: NDArray[np.int32], predicted: NDArray[np.int32], class_count: int
) -> ClassScores:
    """Computes the scores of every class.

    Args:
        labels: True classes, int32 `[N]`.
        predicted: Predicted classes, int32 `[N]`.
        class_count: Number of classes K.
    """
    images = np.bincount(labels, minlength=class_count)
    predictions = np.bincount(predicted, minlength=class_count)
    correct = np.bincount(labels[labels == predicted], minlength=class_count)
    with np.errstate(invalid="ignore"):
        precision = correct / predictions
        recall = correct / images
        f1 = 2 * correct / (images + predictions)
    return ClassScores(
        images,
        predictions,
        correct,
        precision,
        recall,
        f1,
        wilson_interval(correct, predictions),
        wilson_interval(correct, images),
    )
