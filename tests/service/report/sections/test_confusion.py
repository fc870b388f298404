"""The confusion matrix: truth in rows, answers in columns, and nothing lost with a thousand classes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from service.inference.classifier import Predictions
from service.report.pages import page
from service.report.sections.confusion import build_section, most_confused, scores


def subject(labels: list[int], answers: list[int], classes: int):
    predictions = Predictions(
        np.eye(classes, dtype=np.float32)[answers], np.array(labels, np.int32), np.arange(len(labels))
    )
    names = tuple(f"<class {k}>" for k in range(classes))
    return SimpleNamespace(
        predictions=predictions, classes=names, evaluation=SimpleNamespace(split="validation")
    )


def html(section) -> str:
    return page.templates().get_template("confusion.html").render(values=section.values)


def test_truth_stands_in_rows_and_answers_in_columns():
    section = build_section(subject([0, 0, 0, 1, 2], [0, 1, 1, 1, 0], 3), None)
    assert [[cell["count"] for cell in row["cells"]] for row in section.values["rows"]] == [
        [1, 2, 0],
        [0, 1, 0],
        [1, 0, 0],
    ]
    assert [cell["shade"] for cell in section.values["rows"][0]["cells"]] == [4, 7, 0]
    assert section.figures["counts"] == [[0, 0, 1], [0, 1, 2], [1, 1, 1], [2, 0, 1]]
    assert section.figures["most_confused"] == [
        {"truth": "<class 0>", "said": "<class 1>", "times": 2},
        {"truth": "<class 2>", "said": "<class 0>", "times": 1},
    ]
    np.testing.assert_allclose(section.figures["precision"], [0.5, 1 / 3, np.nan])
    np.testing.assert_allclose(section.figures["recall"], [1 / 3, 1, 0])
    shown = html(section)
    assert "&lt;class 0&gt;" in shown
    assert "<class" not in shown


def test_a_class_without_images_has_no_recall():
    precision, recall = scores(np.array([[0, 0], [3, 1]]))
    np.testing.assert_array_equal(precision, [0, 1])
    np.testing.assert_array_equal(recall, [np.nan, 0.25])


def test_commonest_mistakes_first_and_only_those_that_happened():
    matrix = np.array([[50, 1, 0], [7, 9, 0], [0, 7, 0]])
    assert most_confused(matrix, 2) == [(1, 0, 7), (2, 1, 7)]
    assert most_confused(matrix, 9) == [(1, 0, 7), (2, 1, 7), (0, 1, 1)]
    assert matrix[0, 0] == 50


def test_a_thousand_classes_stay_readable():
    labels = list(range(1000)) * 2
    answers = list(range(1000)) + [(k + 1) % 1000 if k % 3 == 0 else k for k in range(1000)]
    section = build_section(subject(labels, answers, 1000), None)
    assert section.values["rows"] is None
    assert len(section.values["pairs"]) == 30
    assert [row["recall"] for row in section.values["classes"]] == [0.5] * 100
    assert len(html(section)) < 60_000


def test_no_mistakes_are_told():
    assert "There are no mistakes" in html(build_section(subject([0, 1], [0, 1], 2), None))
    assert build_section(subject([0, 1], [0, 1], 2), None).figures["recall"] == pytest.approx([1, 1])
