"""Examples: which images the report examines, and which classes their heatmaps explain."""

from __future__ import annotations

import numpy as np

from service.inference.classifier import Predictions
from service.report.analysis.examples import choose_classes, choose_examples


def test_each_class_gives_its_most_confident_correct_prediction_in_turn():
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.7, 0.3]], np.float32)
    labels = np.array([0, 0, 1, 1, 1], np.int32)
    predictions = Predictions(probabilities, labels, np.arange(5))
    assert choose_examples(predictions, 2).tolist() == [1, 2]
    assert choose_examples(predictions, 5).tolist() == [1, 2, 0, 3, 4]
    assert choose_examples(predictions, 0).tolist() == []


def test_a_class_without_a_correct_prediction_gives_its_least_wrong_one():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]], np.float32)
    predictions = Predictions(probabilities, np.array([0, 1, 1], np.int32), np.arange(3))
    assert choose_examples(predictions, 2).tolist() == [0, 2]


def test_heatmaps_explain_all_of_few_classes():
    assert choose_classes(np.array([0.1, 0.2, 0.7]), 0).tolist() == [0, 1, 2]


def test_heatmaps_explain_the_most_probable_of_many_classes_and_the_true_one():
    probabilities = np.array([0.1, 0.2, 0.4, 0.25, 0.05])
    assert choose_classes(probabilities, 1).tolist() == [2, 3, 1]
    assert choose_classes(probabilities, 4).tolist() == [2, 3, 4]
