"""Losses and what is counted, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from service.training.losses import example_losses, predict_classes, training_losses, true_ranks

LOGITS = np.float32([[0.0, 1.0, 3.0], [5.0, 0.0, 0.0], [-2.0, 1.5, 1.0], [0.5, 0.5, 0.5]])
LABELS = np.int32([1, 0, 2, 1])


def entropy(targets: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Cross-entropy of distributions over classes, `[B]`."""
    logits = logits.astype(np.float64)
    return -(targets * (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))).sum(axis=1)


def two_columns(logits: np.ndarray) -> np.ndarray:
    """The same probabilities from a logit for each of two classes."""
    return np.concatenate([np.zeros_like(logits), logits], axis=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_smoothed_label_is_spread_over_all_classes(smoothing: float) -> None:
    several = (1 - smoothing) * np.eye(3)[LABELS] + smoothing / 3
    np.testing.assert_allclose(example_losses(LABELS, LOGITS, smoothing), entropy(several, LOGITS), rtol=1e-5)
    logits, labels = np.float32([[2.0], [-2.0], [0.5]]), np.int32([1, 1, 0])
    two = (1 - smoothing) * np.eye(2)[labels] + smoothing / 2
    np.testing.assert_allclose(
        example_losses(labels, logits, smoothing), entropy(two, two_columns(logits)), rtol=1e-5
    )


def test_losses_of_halves_are_whole() -> None:
    found = example_losses(LABELS, tf.cast(LOGITS * 1000, tf.float16))
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, [2000, 0, 500, np.log(3)], rtol=1e-5)


def test_class_weights_count_by_each_label_of_a_mixture() -> None:
    weights, share = np.float32([1.0, 2.0, 4.0]), np.float32([0.75, 0.25, 1.0, 0.5])
    own = entropy(np.eye(3)[LABELS], LOGITS) * weights[LABELS]
    np.testing.assert_allclose(
        training_losses(LABELS, LOGITS, None, 0.0, tf.constant(weights)), own, rtol=1e-5
    )
    others = LABELS[[1, 0, 3, 2]]
    mixed = share * own + (1 - share) * entropy(np.eye(3)[others], LOGITS) * weights[others]
    np.testing.assert_allclose(
        training_losses(LABELS, LOGITS, share, 0.0, tf.constant(weights)), mixed, rtol=1e-5
    )


def test_rank_is_the_number_of_classes_before_the_true_one() -> None:
    assert predict_classes(tf.constant(LOGITS)).numpy().tolist() == [2, 0, 1, 0]
    assert true_ranks(LABELS, tf.constant(LOGITS)).numpy().tolist() == [
        1,
        0,
        1,
        1,
    ]  # of equals the first comes first
    one = tf.constant([[2.0], [-2.0], [0.0], [0.0]])
    assert predict_classes(one).numpy().tolist() == [1, 0, 0, 0]
    assert true_ranks(np.int32([1, 1, 0, 1]), one).numpy().tolist() == [0, 1, 0, 1]


def test_no_number_is_no_right_answer() -> None:
    for classes in (1, 3):
        assert (true_ranks(np.int32([0, 1]), tf.fill([2, classes], np.nan)).numpy() > 0).all()
