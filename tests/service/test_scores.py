"""Scores, compared with values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from service.scores import (
    auc,
    bootstrap_interval,
    confusion_matrix,
    is_better_than_majority,
    losses,
    true_ranks,
    wilson_interval,
)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_losses_are_natural_logarithms_and_finite():
    probabilities = np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]], np.float32)
    assert losses(probabilities, ints(0, 1, 1)).tolist() == pytest.approx(
        [math.log(4), math.log(2), -math.log(1e-7)], rel=1e-12
    )


def test_ranks_count_more_probable_classes_and_ties_with_smaller_labels():
    probabilities = np.array(
        [[0.1, 0.6, 0.3], [0.1, 0.6, 0.3], [0.4, 0.2, 0.4], [0.4, 0.2, 0.4], [1 / 3] * 3], np.float32
    )
    labels = ints(0, 1, 2, 0, 2)
    assert true_ranks(probabilities, labels).tolist() == [2, 0, 1, 0, 2]
    np.testing.assert_array_equal(
        true_ranks(probabilities, labels) == 0, probabilities.argmax(axis=1) == labels
    )


def test_the_confusion_matrix_has_true_classes_in_rows():
    assert confusion_matrix(ints(0, 0, 2, 2, 2), ints(1, 0, 2, 0, 2), 4).tolist() == [
        [1, 1, 0, 0],
        [0] * 4,
        [1, 0, 2, 0],
        [0] * 4,
    ]


@pytest.mark.parametrize(
    ("labels", "scores", "area"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], 1.0),
        ([1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4], 0.0),
        ([0, 1], [0.5, 0.5], 0.5),
        ([0, 1, 0, 1], [0.1, 0.1, 0.1, 0.9], 3 / 4),  # of 4 pairs 2 won, 2 tied
        ([1, 0, 1, 0, 0], [0.8, 0.7, 0.6, 0.6, 0.1], 4.5 / 6),
    ],
)
def test_auc_is_the_share_of_pairs_in_order(labels, scores, area):
    assert auc(ints(*labels), np.array(scores, np.float32)) == pytest.approx(area, rel=1e-12)


def test_auc_equals_counting_every_pair():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 300)
    scores = draw.integers(0, 20, 300) / 20  # many ties
    won = scores[labels == 1][:, None] - scores[labels == 0][None]
    assert auc(labels, scores) == pytest.approx(((won > 0) + 0.5 * (won == 0)).mean(), rel=1e-12)


def test_the_bootstrap_interval_is_that_of_scipy():
    values = np.random.default_rng(3).exponential(size=40)
    expected = scipy.stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=0)
    low, high = bootstrap_interval(values, seed=0)
    width = expected.confidence_interval.high - expected.confidence_interval.low
    assert low == pytest.approx(expected.confidence_interval.low, abs=0.05 * width)
    assert high == pytest.approx(expected.confidence_interval.high, abs=0.05 * width)
    assert bootstrap_interval(values, seed=0) == (low, high)
    assert bootstrap_interval(values[:1], seed=0) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("correct", "images", "is_better"), [(50, 100, False), (56, 100, False), (75, 100, True), (20, 20, True)]
)
def test_a_model_must_be_clearly_better_than_the_most_frequent_class(correct, images, is_better):
    labels = np.arange(images) % 2
    predicted = np.where(np.arange(images) < correct, labels, 1 - labels)
    assert is_better_than_majority(predicted, labels, seed=0) == is_better


def test_the_most_frequent_class_is_not_better_than_itself():
    labels = np.array([1] * 90 + [0] * 10)
    assert not is_better_than_majority(np.ones(100, np.int64), labels, seed=0)
    assert not is_better_than_majority(labels[:0], labels[:0], seed=0)


def test_wilson_intervals_are_those_of_the_textbook_and_stay_in_range():
    # 8 of 10: (0.8 + 0.19207 +- 1.96 sqrt(0.016 + 0.0096)) / 1.38415, from z = 1.96.
    lows, highs = wilson_interval(np.array([8, 0, 10, 0]), np.array([10, 10, 10, 0]))
    assert lows == pytest.approx([0.4902, 0.0, 0.7225, 0.0], abs=1e-4)
    assert highs == pytest.approx([0.9433, 0.2775, 1.0, 1.0], abs=1e-4)
