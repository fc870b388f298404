"""Scores by class: precision, recall and F1 computed by hand; the worst classes first if there are many."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from service.inference.classifier import Predictions
from service.report.analysis.class_scores import compute_class_scores
from service.report.pages import page
from service.report.sections.class_scores import build_section, choose_scale

LABELS = [0, 0, 0, 0, 1, 1, 2]
PREDICTED = [0, 0, 0, 1, 1, 0, 0]


def predict(labels: list[int], predicted: list[int], classes: int) -> Predictions:
    probabilities = np.eye(classes, dtype=np.float32)[predicted]
    return Predictions(probabilities, np.array(labels, np.int32), np.arange(len(labels)))


def render(section) -> str:
    return page.load_templates().get_template("class_scores.html").render(values=section.values)


def test_scores_by_hand():
    scores = compute_class_scores(np.array(LABELS), np.array(PREDICTED), 4)
    assert scores.images.tolist() == [4, 2, 1, 0]
    assert scores.predicted.tolist() == [5, 2, 0, 0]
    np.testing.assert_allclose(scores.precision, [3 / 5, 1 / 2, np.nan, np.nan])
    np.testing.assert_allclose(scores.recall, [3 / 4, 1 / 2, 0, np.nan])
    np.testing.assert_allclose(scores.f1, [6 / 9, 1 / 2, 0, np.nan])
    lows, highs = scores.precision_interval
    assert lows[0] < 0.6 < highs[0]
    assert scores.recall_interval[0][0] == pytest.approx(0.3006, abs=1e-3)  # Wilson, 3 of 4


def test_the_table_shows_every_class_with_a_link_to_its_images():
    section = build_section(predict(LABELS, PREDICTED, 4), ("<a>", "b", "c", "none"))
    html = render(section)
    assert "&lt;a&gt;" in html
    assert 'href="#gallery:truth=1"' in html
    assert '<td data-value="4">4</td>' in html  # images, of which there are 5 predictions
    assert "60.0%" in html
    assert "75.0%" in html
    assert section.figures["macro_f1"] == pytest.approx((6 / 9 + 1 / 2) / 3)
    assert "“&lt;a&gt;” is recognized most often (75.0% of its images), “c” least often (0.0%)" in html
    assert "data-rest" not in html


def test_of_many_classes_the_worst_are_shown_and_the_others_on_request():
    classes = 1000
    labels = np.repeat(np.arange(classes), 3)
    predicted = labels.copy()
    predicted[3 * 7 : 3 * 7 + 2] = 8  # class 7 is mostly taken for class 8
    section = build_section(
        predict(labels.tolist(), predicted.tolist(), classes), [f"class {k}" for k in range(classes)]
    )
    assert [row.label for row in section.values["rows"]][:3] == [7, 8, 0]
    html = render(section)
    assert html.count("<tr>") <= 23
    assert len(html) < 60_000
    rest = json.loads(re.search(r'application/json">(.*?)</script>', html)[1])
    assert len(rest) == classes - 20
    assert rest[0] == [20, "class 20", 3, 3, 3]
    assert len(section.figures["recall"]) == classes


def test_a_percent_is_visible():
    labels = [0] * 100 + [1] * 100
    predicted = [0] * 99 + [1] + [1] * 98 + [0] * 2
    section = build_section(predict(labels, predicted, 2), ("a", "b"))
    low = choose_scale(section.values["rows"])
    assert low == 0.97
    widths = [float(width) for width in re.findall(r'height="6" width="([\d.]+)"', render(section))]
    recalls = widths[1::2]
    assert recalls[0] - recalls[1] == pytest.approx(0.01 / (1 - low) * 100, abs=0.1)
    assert "Bars begin at 97%, not at zero" in render(section)


def test_bars_that_begin_at_zero_are_not_said_to_begin_elsewhere():
    section = build_section(predict([0, 0, 1, 1], [0, 0, 0, 0], 2), ("a", "b"))
    assert choose_scale(section.values["rows"]) == 0
    assert "Bars begin" not in render(section)


def test_no_images_have_no_section():
    assert build_section(predict([], [], 3), ("a", "b", "c")) is None
