"""Which images a report shows."""

from __future__ import annotations

import numpy as np
import pytest

from service.inference.classifier import Predictions
from service.report.sections import predictions, training_images


def predict(probabilities_of_1: list[float], labels: list[int]) -> Predictions:
    p = np.array(probabilities_of_1, np.float32)
    return Predictions(np.stack([1 - p, p], axis=1), np.array(labels, np.int32), np.arange(len(labels)))


def test_the_most_confident_mistakes_come_first_then_correct_predictions():
    found = predict([0.1, 0.95, 0.6, 0.05, 0.99, 0.7], [1, 0, 0, 0, 1, 1])
    assert predictions.select_predictions(found, 6).tolist() == [1, 0, 2, 4, 3, 5]


def test_correct_predictions_come_from_each_class_in_turn():
    found = predict([0.99, 0.98, 0.97, 0.1, 0.2], [1, 1, 1, 0, 0])
    assert predictions.select_predictions(found, 5).tolist() == [0, 3, 1, 4, 2]


@pytest.mark.parametrize(
    ("wrong", "right", "count", "expected"),
    [
        (5, 5, 4, (2, 2)),
        (5, 5, 5, (3, 2)),
        (1, 9, 4, (1, 3)),
        (9, 1, 4, (3, 1)),
        (0, 9, 4, (0, 4)),
        (9, 0, 4, (4, 0)),
        (2, 1, 9, (2, 1)),
    ],
)
def test_mistakes_and_correct_predictions_share_the_places(wrong, right, count, expected):
    found = predict([0.9] * (wrong + right), [0] * wrong + [1] * right)
    chosen = predictions.select_predictions(found, count)
    assert len(set(chosen.tolist())) == len(chosen)
    assert ((chosen < wrong).sum(), (chosen >= wrong).sum()) == expected
    assert sorted(chosen >= wrong) == list(chosen >= wrong)


def test_training_images_are_of_every_class_and_spread_over_it():
    labels = np.array([0] * 10 + [1] * 4)
    assert training_images.select_rows(labels, 4).tolist() == [0, 5, 10, 12]
    assert training_images.select_rows(labels, 5).tolist() == [0, 3, 6, 10, 12]


def test_a_small_class_leaves_its_places_to_others():
    labels = np.array([0, 1, 1, 1, 1, 1, 1])
    assert training_images.select_rows(labels, 5).tolist() == [0, 1, 2, 4, 5]
    assert training_images.select_rows(labels, 99).tolist() == list(range(7))


def test_training_images_of_interleaved_classes_are_grouped():
    assert training_images.select_rows(np.array([2, 0, 2, 0]), 4).tolist() == [1, 3, 0, 2]
