"""Agreement of two models: exact counts and lists on hand-made predictions, and McNemar's test."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from service.report.analysis.agreement import (
    Outcomes,
    align_classes,
    compute_mcnemar_p_value,
    count_outcomes,
    describe_difference,
    find_disagreements,
    format_p_value,
)


@pytest.mark.parametrize(
    ("only_first", "only_second", "expected"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # one toss: 2 * 1/2
        (0, 5, 2 / 32),
        (1, 5, 2 * (1 + 6) / 64),
        (5, 1, 2 * (1 + 6) / 64),
        (2, 2, 1.0),  # 2 * 11/16, at most 1
        (3, 4, 1.0),
    ],
)
def test_mcnemar_by_hand(only_first: int, only_second: int, expected: float) -> None:
    assert compute_mcnemar_p_value(only_first, only_second) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("only_first", "only_second"), [(10, 25), (25, 10), (120, 80), (3, 40), (700, 650), (5000, 4700)]
)
def test_mcnemar_is_the_two_sided_binomial_test(only_first: int, only_second: int) -> None:
    expected = binomtest(only_first, only_first + only_second, 0.5, alternative="two-sided").pvalue
    assert compute_mcnemar_p_value(only_first, only_second) == pytest.approx(expected, rel=1e-8)


def test_outcomes_are_counted_by_model() -> None:
    first = np.array([1, 1, 1, 0, 0, 0, 1], bool)
    second = np.array([1, 0, 0, 1, 0, 0, 0], bool)
    outcomes = count_outcomes(first, second)
    assert outcomes == Outcomes(both=1, only_first=3, only_second=1, neither=2)
    assert outcomes.first_accuracy == 4 / 7
    assert outcomes.second_accuracy == 2 / 7
    assert outcomes.difference == -2 / 7
    assert outcomes.p_value == pytest.approx(2 * 5 / 16)
    assert math.isnan(Outcomes(0, 0, 0, 0).difference)


def test_the_strongest_disagreement_comes_first() -> None:
    first = np.array(
        [[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.6, 0.4, 0.0]], np.float32
    )
    second = np.array(
        [[0.8, 0.2, 0.0], [0.4, 0.6, 0.0], [0.3, 0.3, 0.4], [0.0, 0.0, 1.0], [0.4, 0.6, 0.0]], np.float32
    )
    indices, strengths = find_disagreements(first, second)
    assert indices.tolist() == [3, 1, 4, 2]  # 0 is the same class; 1, 4 and 2 differ by 0.2
    np.testing.assert_allclose(strengths, [1.0, 0.2, 0.2, 0.2], atol=1e-6)
    swapped, _ = find_disagreements(second, first)
    assert swapped.tolist() == indices.tolist()


def test_no_disagreement() -> None:
    probabilities = np.array([[0.9, 0.1]], np.float32)
    indices, strengths = find_disagreements(probabilities, probabilities)
    assert (len(indices), len(strengths)) == (0, 0)


def test_classes_are_matched_by_name() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1]], np.float32)
    aligned = align_classes(probabilities, ("cat", "dog", "owl"), ("owl", "cat", "dog"))
    np.testing.assert_array_equal(aligned, np.array([[0.1, 0.7, 0.2]], np.float32))


@pytest.mark.parametrize(
    ("outcomes", "phrases"),
    [
        (Outcomes(5, 0, 0, 2), ["exactly the same images"]),
        (
            Outcomes(5, 3, 3, 0),
            ["same accuracy", "of the 6 images", "p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}1"],
        ),
        (
            Outcomes(60, 9, 12, 19),
            [
                "B is better by 3.0 points",
                "of the 21 images",
                "it gets 12",
                "could well be chance (",
                "p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}0.66",
            ],
        ),
        (
            Outcomes(60, 30, 5, 5),
            [
                "A is better by 25.0 points",
                "it gets 30",
                "unlikely to be chance (",
                "<\N{NO-BREAK SPACE}0.0001",
            ],
        ),
    ],
)
def test_the_difference_in_words(outcomes: Outcomes, phrases: list[str]) -> None:
    text = describe_difference(outcomes, "A", "B")
    for phrase in phrases:
        assert phrase in text


def test_p_values_are_formatted() -> None:
    """On one line: their spaces do not break."""
    texts = [format_p_value(p) for p in (1.0, 0.6636, 0.0321, 0.00012, 1e-9)]
    assert " " not in "".join(texts)
    assert [text.replace("\N{NO-BREAK SPACE}", " ") for text in texts] == [
        "p = 1",
        "p = 0.66",
        "p = 0.032",
        "p = 0.00012",
        "p < 0.0001",
    ]
