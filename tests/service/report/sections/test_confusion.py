"""The confusion matrix: true classes in rows, predicted ones in columns; readable for many classes."""

from __future__ import annotations

import numpy as np
import pytest

from service.inference.classifier import Predictions
from service.report.pages import page
from service.report.sections.confusion import build_section, compute_precision_recall, find_most_confused
from service.report.sections.section import Section


def build(labels: list[int], predicted: list[int], classes: int) -> Section:
    predictions = Predictions(
        np.eye(classes, dtype=np.float32)[predicted], np.array(labels, np.int32), np.arange(len(labels))
    )
    return build_section(predictions, tuple(f"<class {k}>" for k in range(classes)))


def html(section) -> str:
    return page.load_templates().get_template("confusion.html").render(values=section.values)


def test_rows_are_true_classes_and_columns_predicted_ones():
    section = build([0, 0, 0, 1, 2], [0, 1, 1, 1, 0], 3)
    assert [[cell["count"] for cell in row["cells"]] for row in section.values["rows"]] == [
        [1, 2, 0],
        [0, 1, 0],
        [1, 0, 0],
    ]
    assert [cell["share"] for cell in section.values["rows"][0]["cells"]] == pytest.approx([1 / 3, 2 / 3, 0])
    assert section.figures["counts"] == [[0, 0, 1], [0, 1, 2], [1, 1, 1], [2, 0, 1]]
    assert section.figures["most_confused"] == [
        {"truth": "<class 0>", "predicted": "<class 1>", "times": 2},
        {"truth": "<class 2>", "predicted": "<class 0>", "times": 1},
    ]
    np.testing.assert_allclose(section.figures["precision"], [0.5, 1 / 3, np.nan])
    np.testing.assert_allclose(section.figures["recall"], [1 / 3, 1, 0])
    shown = html(section)
    assert "&lt;class 0&gt;" in shown
    assert "<class" not in shown


def test_a_class_without_images_has_no_recall():
    precision, recall = compute_precision_recall(np.array([[0, 0], [3, 1]]))
    np.testing.assert_array_equal(precision, [0, 1])
    np.testing.assert_array_equal(recall, [np.nan, 0.25])


def test_only_mistakes_are_listed_and_the_most_frequent_come_first():
    matrix = np.array([[50, 1, 0], [7, 9, 0], [0, 7, 0]])
    assert find_most_confused(matrix, 2) == [(1, 0, 7), (2, 1, 7)]
    assert find_most_confused(matrix, 9) == [(1, 0, 7), (2, 1, 7), (0, 1, 1)]
    assert matrix[0, 0] == 50


def test_a_thousand_classes_stay_readable():
    labels = list(range(1000)) * 2
    predicted = list(range(1000)) + [(k + 1) % 1000 if k % 3 == 0 else k for k in range(1000)]
    section = build(labels, predicted, 1000)
    assert section.values["rows"] is None
    assert len(section.values["pairs"]) == 30
    shown = html(section)
    assert 'href="#gallery:truth=3,predicted=4"' in shown
    assert len(shown) < 60_000


def test_forty_classes_are_a_small_table():
    generator = np.random.default_rng(0)
    section = build(
        generator.integers(0, 40, 10_000).tolist(), generator.integers(0, 40, 10_000).tolist(), 40
    )
    assert len(section.values["rows"]) == 40
    assert build([0], [0], 41).values["rows"] is None
    assert len(html(section)) < 180_000


def test_mistakes_have_a_scale_of_their_own():
    """Of 1,000 images, 10 and 40 are mistaken: 1 % has half the shade of the largest share, 4 %."""
    labels = [0] * 1000 + [1] * 100 + [2] * 100
    predicted = [0] * 950 + [1] * 10 + [2] * 40 + [1] * 100 + [2] * 100
    section = build(labels, predicted, 3)
    assert section.values["largest_mistake"] == pytest.approx(0.04)
    shades = [[cell["shade"] for cell in row["cells"]] for row in section.values["rows"]]
    np.testing.assert_allclose(shades, [[0.95, 0.5, 1], [0, 1, 0], [0, 0, 1]])


def test_a_class_without_images_has_an_empty_row():
    section = build([0, 0], [0, 1], 3)
    assert [cell["count"] for cell in section.values["rows"][2]["cells"]] == [0, 0, 0]
    assert section.values["largest_mistake"] == pytest.approx(0.5)


def test_a_matrix_without_mistakes_is_stated_as_such():
    assert "There are no incorrect predictions" in html(build([0, 1], [0, 1], 2))
    assert build([0, 1], [0, 1], 2).figures["recall"] == pytest.approx([1, 1])
