"""Scores of predictions: losses, ranks, confusion matrix, AUC. Needs NumPy only."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# Probabilities are clipped to this value, so that one confident mistake cannot make the loss infinite.
SMALLEST = 1e-7
TOP = 5
BOOTSTRAP_DRAWS = 2000
NORMAL_QUANTILE = 1.959963984540054  # of 0.975
TINY_COUNT = 1e-9  # instead of zero images


def losses(probabilities: NDArray[np.float32], labels: NDArray[np.int32]) -> NDArray[np.float64]:
    """Computes the negative log likelihood of the true class of each image, in nats.

    Args:
        probabilities: float32 `[N, K]`.
        labels: int32 `[N]`, 0 to K - 1.

    Returns:
        float64 `[N]`.
    """
    true_class = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    negative: NDArray[np.float64] = -np.log(np.maximum(true_class, SMALLEST))
    return negative


def true_ranks(probabilities: NDArray[np.float32], labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """Counts the classes that rank above the true one; 0 for a correct prediction.

    The more probable class ranks first; of equally probable ones, the one with the smaller label.

    Args:
        probabilities: float32 `[N, K]`.
        labels: int32 `[N]`, 0 to K - 1.

    Returns:
        int64 `[N]`.
    """
    true_class = probabilities[np.arange(len(labels)), labels][:, None]  # [N, 1]
    is_smaller_label = np.arange(probabilities.shape[1]) < labels[:, None]  # [N, K]
    ties = (probabilities == true_class) & is_smaller_label
    ranks: NDArray[np.int64] = ((probabilities > true_class) | ties).sum(axis=1)
    return ranks


def confusion_matrix(
    labels: NDArray[np.int32], predicted: NDArray[np.int32], classes: int
) -> NDArray[np.int64]:
    """Counts how often an image of one class (row) was predicted to be of another (column).

    Args:
        labels: int32 `[N]`, the true classes, 0 to `classes` - 1.
        predicted: int32 `[N]`, the predicted classes.
        classes: Number of classes.

    Returns:
        int64 `[classes, classes]`; sums to N.
    """
    pairs = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes * classes)
    return pairs.reshape(classes, classes)


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Computes the area under the ROC curve.

    That is the probability that an image of class 1 scores higher than one of class 0, ties counted half. It
    equals the statistic of Mann and Whitney (1947) divided by the number of pairs.

    Args:
        labels: int `[N]`, 0 or 1, both present.
        scores: float `[N]`, higher for class 1.
    """
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last_ranks = np.cumsum(counts)
    mean_ranks = (last_ranks - (counts - 1) / 2)[group]  # [N], from 1; ties share their mean rank
    is_positive = labels == 1
    positives = int(is_positive.sum())
    negatives = len(labels) - positives
    statistic = mean_ranks[is_positive].sum() - positives * (positives + 1) / 2
    return float(statistic / (positives * negatives))


def standard_error(accuracy: float, images: int) -> float:
    """Computes the standard error of an accuracy measured on some number of images."""
    return math.sqrt(accuracy * (1 - accuracy) / max(images, 1))


def wilson_interval(
    hits: NDArray[np.int64], images: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Computes 95 % confidence intervals of shares (Wilson, 1927); they stay in [0, 1] for few images too.

    Args:
        hits: Numbers of images with a property, int64 `[n]`.
        images: Numbers of all images, int64 `[n]`.

    Returns:
        Lower and upper bounds, float64 `[n]` each; 0 and 1 without images.
    """
    count = np.maximum(np.asarray(images, np.float64), TINY_COUNT)
    share = np.asarray(hits, np.float64) / count
    squared = NORMAL_QUANTILE**2 / count
    centre = (share + squared / 2) / (1 + squared)
    half = np.sqrt(squared * (share * (1 - share) + squared / 4)) / (1 + squared)
    return np.clip(centre - half, 0.0, 1.0), np.clip(centre + half, 0.0, 1.0)


def bootstrap_interval(values: np.ndarray, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Computes a confidence interval of a mean over images: the percentile bootstrap (Efron, 1979).

    Args:
        values: Value of every image, float `[N]`.
        seed: Seed of the resampling.
        level: Probability that the interval covers the mean.

    Returns:
        Lower and upper bound; infinite for fewer than two images, which show no variation.
    """
    if len(values) < 2:
        return -math.inf, math.inf
    draws = np.random.default_rng(seed).integers(0, len(values), (BOOTSTRAP_DRAWS, len(values)))
    means = np.asarray(values, np.float64)[draws].mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def is_better_than_majority(predicted: np.ndarray, labels: np.ndarray, seed: int) -> bool:
    """Tells whether predictions are clearly more often correct than always the most frequent class.

    The images are resampled, each with both predictions: clear means that the bootstrap interval of the
    difference is above 0.

    Args:
        predicted: Predicted classes, int `[N]`.
        labels: True classes, int `[N]`.
        seed: Seed of the resampling.
    """
    if not len(labels):
        return False
    majority = np.bincount(labels).argmax()
    gains = (predicted == labels).astype(np.float64) - (labels == majority)
    return bootstrap_interval(gains, seed)[0] > 0


def majority_class_share(labels: np.ndarray) -> float:
    """Computes the accuracy of always predicting the most frequent class; NaN without labels."""
    if not len(labels):
        return math.nan
    return float(np.bincount(labels).max() / len(labels))


def compute_skill(accuracy: float, labels: NDArray[np.int32]) -> float:
    """Computes how far an accuracy is on the way from the majority-class baseline to 1.

    Args:
        accuracy: Share of the labels that are predicted.
        labels: int32 `[N]`, class indices.

    Returns:
        0 at the baseline, 1 for a perfect prediction, negative below the baseline; NaN without images.
    """
    if not len(labels):
        return math.nan
    baseline = majority_class_share(labels)
    if baseline == 1:
        return accuracy - 1
    return (accuracy - baseline) / (1 - baseline)
