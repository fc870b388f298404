"""Scores, compared with values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from service.scores import auc, confusion_matrix, losses, true_ranks


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
