"""Scores of answers, exact and in NumPy alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

SMALLEST = 1e-7  # probabilities below it count as it, so that one sure mistake cannot make the loss infinite
TOP = 5


def losses(probabilities: NDArray[np.float32], labels: NDArray[np.int32]) -> NDArray[np.float64]:
    """Negative log likelihood of the true class of each image, in nats.

    Args:
        probabilities: float32 `[N, K]`.
        labels: int32 `[N]`, 0 to K - 1.

    Returns:
        float64 `[N]`.
    """
    of_truth = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    negative: NDArray[np.float64] = -np.log(np.maximum(of_truth, SMALLEST))
    return negative


def true_ranks(probabilities: NDArray[np.float32], labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """How many classes stand before the true one, where the more probable comes first, and of equals the first: 0 if right.

    Args:
        probabilities: float32 `[N, K]`.
        labels: int32 `[N]`, 0 to K - 1.

    Returns:
        int64 `[N]`.
    """
    of_truth = probabilities[np.arange(len(labels)), labels][:, None]  # [N, 1]
    ahead = (probabilities == of_truth) & (np.arange(probabilities.shape[1]) < labels[:, None])
    ranks: NDArray[np.int64] = ((probabilities > of_truth) | ahead).sum(axis=1)
    return ranks


def confusion_matrix(
    labels: NDArray[np.int32], predicted: NDArray[np.int32], classes: int
) -> NDArray[np.int64]:
    """How often an image of a class (row) was taken for a class (column).

    Args:
        labels: int32 `[N]`, 0 to `classes` - 1.
        predicted: The same of the answers.
        classes: Number of classes.

    Returns:
        int64 `[classes, classes]`; sums to N.
    """
    pairs = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes * classes)
    return pairs.reshape(classes, classes)


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """The area under the ROC curve: how often an image of class 1 scores higher than one of class 0, ties counted half.

    It is the statistic of Mann and Whitney (1947), over the number of pairs.

    Args:
        labels: int `[N]`, 0 or 1, both present.
        scores: float `[N]`, higher for class 1.
    """
    _, rank, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    mean_ranks = (ends - (counts - 1) / 2)[rank]  # of ties, from 1
    positive = labels == 1
    many, others = int(positive.sum()), int((~positive).sum())
    return float((mean_ranks[positive].sum() - many * (many + 1) / 2) / (many * others))


def standard_error(accuracy: float, images: int) -> float:
    """Standard error of an accuracy that was measured on some number of images."""
    return math.sqrt(accuracy * (1 - accuracy) / max(images, 1))


def majority_class_share(labels: np.ndarray) -> float:
    """Accuracy of always naming the commonest class."""
    return float(np.bincount(labels).max() / len(labels)) if len(labels) else math.nan
