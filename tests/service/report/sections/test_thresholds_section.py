"""Thresholds: curves of both classes of a single unit, of the weakest of many, and their size on the page."""

from __future__ import annotations

import json

import numpy as np
import pytest

from service.inference.classifier import Predictions
from service.report.pages import page
from service.report.sections.thresholds import build_section


def predict(probabilities: np.ndarray, labels: np.ndarray) -> Predictions:
    return Predictions(probabilities.astype(np.float32), labels.astype(np.int32), np.arange(len(labels)))


def random_predictions(images: int, classes: int, seed: int = 0) -> Predictions:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, images)
    logits = generator.normal(size=(images, classes)) + 2 * np.eye(classes)[labels]
    return predict(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels)


def test_both_classes_of_a_single_unit_mirror_each_other():
    p = np.array([0.1, 0.4, 0.5, 0.7, 0.9])
    section = build_section(predict(np.stack([1 - p, p], axis=1), np.array([0, 1, 0, 1, 1])), ("a", "b"), 0)
    first, second = section.figures["classes"]
    assert first["roc_auc"]["value"] == pytest.approx(second["roc_auc"]["value"]) == pytest.approx(5 / 6)
    assert (second["positives"], second["negatives"]) == (3, 2)
    assert section.values["chosen"] == 1
    start = section.values["data"][1]["start"]
    assert second["thresholds"][start] == "0.5"
    assert (second["true_positives"][start], second["false_positives"][start]) == (2, 1)


def test_of_many_classes_the_weakest_have_curves_and_the_page_stays_small():
    section = build_section(random_predictions(4000, 50), [f"class {k}" for k in range(50)], 0)
    assert len(section.figures["classes"]) == 20
    assert len(json.dumps(section.values["data"])) < 20_000
    html = page.load_templates().get_template("thresholds.html").render(values=section.values)
    assert "the 20 classes with the lowest F1 score" in html


def test_a_class_without_images_has_no_curve_and_one_class_no_section():
    predictions = random_predictions(100, 2)
    three = np.concatenate([predictions.probabilities, np.zeros((100, 1))], axis=1)
    section = build_section(predict(three, predictions.labels), ("a", "b", "c"), 0)
    assert [curve["class"] for curve in section.figures["classes"]] == ["a", "b"]
    assert build_section(predict(predictions.probabilities, np.zeros(100)), ("a", "b"), 0) is None
