"""Losses, predictions and ranks of single examples, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from service.training.losses import example_losses, predict_classes, training_losses, true_ranks

LOGITS = np.float32([[0.0, 1.0, 3.0], [5.0, 0.0, 0.0], [-2.0, 1.5, 1.0], [0.5, 0.5, 0.5]])
LABELS = np.int32([1, 0, 2, 1])


def cross_entropy(targets: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Cross-entropy of distributions over classes, `[B]`."""
    logits = logits.astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -(targets * log_probabilities).sum(axis=1)


def expand_to_two_classes(logits: np.ndarray) -> np.ndarray:
    """The same probabilities from a logit for each of two classes."""
    return np.concatenate([np.zeros_like(logits), logits], axis=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_smoothed_label_is_spread_over_all_classes(smoothing: float) -> None:
    targets = (1 - smoothing) * np.eye(3)[LABELS] + smoothing / 3
    losses = example_losses(LABELS, LOGITS, smoothing)
    np.testing.assert_allclose(losses, cross_entropy(targets, LOGITS), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_single_unit_has_the_losses_of_two_classes(smoothing: float) -> None:
    logits = np.float32([[2.0], [-2.0], [0.5]])
    labels = np.int32([1, 1, 0])
    targets = (1 - smoothing) * np.eye(2)[labels] + smoothing / 2
    losses = example_losses(labels, logits, smoothing)
    np.testing.assert_allclose(losses, cross_entropy(targets, expand_to_two_classes(logits)), rtol=1e-5)


def test_losses_of_float16_logits_are_float32() -> None:
    losses = example_losses(LABELS, tf.cast(LOGITS * 1000, tf.float16))
    assert losses.dtype == tf.float32
    np.testing.assert_allclose(losses, [2000, 0, 500, np.log(3)], rtol=1e-5)


def test_class_weights_apply_to_each_label_of_a_mixture() -> None:
    weights = np.float32([1.0, 2.0, 4.0])
    own = cross_entropy(np.eye(3)[LABELS], LOGITS) * weights[LABELS]
    losses = training_losses(LABELS, LOGITS, None, 0.0, tf.constant(weights))
    np.testing.assert_allclose(losses, own, rtol=1e-5)

    share = np.float32([0.75, 0.25, 1.0, 0.5])
    neighbour_labels = LABELS[[1, 0, 3, 2]]
    other = cross_entropy(np.eye(3)[neighbour_labels], LOGITS) * weights[neighbour_labels]
    losses = training_losses(LABELS, LOGITS, share, 0.0, tf.constant(weights))
    np.testing.assert_allclose(losses, share * own + (1 - share) * other, rtol=1e-5)


def binary_cross_entropy(targets: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Mean over the classes of the cross-entropies of single classes, `[B]`."""
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    losses = targets * np.log(probabilities) + (1 - targets) * np.log(1 - probabilities)
    return -losses.mean(axis=1)


# Shares of the labels 1, 0 | 2, 1 of two pairs of neighbours
SHARE = np.float32([0.75, 0.25, 0.9, 0.5])
MIXED = np.array([[0.25, 0.75, 0.0], [0.25, 0.75, 0.0], [0.0, 0.1, 0.9], [0.0, 0.5, 0.5]])


@pytest.mark.parametrize(
    ("smoothing", "threshold", "targets"),
    [
        (0.0, None, MIXED),
        (0.3, None, 0.7 * MIXED + 0.1),
        (0.0, 0.2, np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1]])),
        (0.0, 0.5, np.array([[0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])),
    ],
)
def test_binary_losses_of_mixtures(smoothing: float, threshold: float | None, targets: np.ndarray) -> None:
    losses = training_losses(LABELS, LOGITS, SHARE, smoothing, None, "bce", threshold)
    np.testing.assert_allclose(losses, binary_cross_entropy(targets, LOGITS), rtol=1e-5)


def test_binary_losses_of_single_images_and_units() -> None:
    losses = training_losses(LABELS, LOGITS, None, loss="bce")
    np.testing.assert_allclose(losses, binary_cross_entropy(np.eye(3)[LABELS], LOGITS), rtol=1e-5)
    weights = np.float32([1.0, 2.0, 4.0])
    weighted = training_losses(LABELS, LOGITS, SHARE, 0.0, weights, "bce")
    np.testing.assert_allclose(weighted, binary_cross_entropy(MIXED, LOGITS) * (MIXED @ weights), rtol=1e-5)
    unit = np.float32([[2.0], [-2.0]])
    expected = example_losses(np.int32([1, 0]), unit)
    np.testing.assert_allclose(training_losses(np.int32([1, 0]), unit, None, loss="bce"), expected, rtol=1e-5)


def test_the_rank_is_the_number_of_classes_before_the_true_one() -> None:
    assert predict_classes(tf.constant(LOGITS)).numpy().tolist() == [2, 0, 1, 0]
    # of equal logits the first comes first
    assert true_ranks(LABELS, tf.constant(LOGITS)).numpy().tolist() == [1, 0, 1, 1]


def test_a_single_unit_predicts_class_1_for_positive_logits() -> None:
    logits = tf.constant([[2.0], [-2.0], [0.0], [0.0]])
    assert predict_classes(logits).numpy().tolist() == [1, 0, 0, 0]
    assert true_ranks(np.int32([1, 1, 0, 1]), logits).numpy().tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("units", [1, 3])
def test_nan_predictions_are_never_correct(units: int) -> None:
    assert (true_ranks(np.int32([0, 1]), tf.fill([2, units], np.nan)).numpy() > 0).all()
