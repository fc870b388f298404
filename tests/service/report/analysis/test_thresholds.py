"""Threshold curves against counts made by hand, SciPy, and scikit-learn where it is installed."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from service.report.analysis.thresholds import (
    choose_stops,
    compute_average_precision,
    compute_curve,
    compute_roc_area,
    estimate_areas,
)

# Two images share the score 0.6, of which one is of the class.
SCORES = np.array([0.9, 0.6, 0.6, 0.5, 0.2], np.float32)
IS_POSITIVE = np.array([True, False, True, True, False])


def random_scores(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores with many ties."""
    generator = np.random.default_rng(seed)
    is_positive = generator.random(count) < 0.3
    scores = np.round(np.clip(generator.normal(0.4 + 0.2 * is_positive, 0.2), 0, 1), 2)
    return scores.astype(np.float32), is_positive


def test_images_of_equal_scores_enter_together():
    curve = compute_curve(SCORES, IS_POSITIVE)
    np.testing.assert_array_equal(curve.scores, np.float64([SCORES[0], SCORES[1], 0.5, SCORES[4]]))
    assert curve.true_positives.tolist() == [1, 2, 3, 3]
    assert curve.false_positives.tolist() == [0, 1, 1, 2]
    assert (curve.positives, curve.negatives) == (3, 2)


def test_an_image_counts_at_a_threshold_equal_to_its_score():
    curve = compute_curve(SCORES, IS_POSITIVE)
    assert curve.count_at(0.5) == (3, 1)
    assert curve.count_at(np.nextafter(0.5, 1)) == (2, 1)
    assert curve.count_at(0.95) == (0, 0)
    assert curve.count_at(0.0) == (3, 2)


def test_areas_by_hand():
    curve = compute_curve(SCORES, IS_POSITIVE)
    # Of 6 pairs of an image of the class and another, 4 are in the right order and one is a tie.
    assert compute_roc_area(curve.true_positives, curve.false_positives) == pytest.approx(4.5 / 6)
    # Recall rises by a third at each of the precisions 1, 2/3 and 3/4.
    expected = (1 + 2 / 3 + 3 / 4) / 3
    assert compute_average_precision(curve.true_positives, curve.false_positives) == pytest.approx(expected)


def test_areas_of_random_scores_are_those_of_other_libraries():
    scores, is_positive = random_scores(500)
    curve = compute_curve(scores, is_positive)
    roc = float(compute_roc_area(curve.true_positives, curve.false_positives))
    average_precision = float(compute_average_precision(curve.true_positives, curve.false_positives))
    statistic = scipy.stats.mannwhitneyu(scores[is_positive], scores[~is_positive]).statistic
    assert roc == pytest.approx(statistic / (curve.positives * curve.negatives))
    metrics = pytest.importorskip("sklearn.metrics")
    assert roc == pytest.approx(metrics.roc_auc_score(is_positive, scores))
    assert average_precision == pytest.approx(metrics.average_precision_score(is_positive, scores))
    precision, recall, _ = metrics.precision_recall_curve(is_positive, scores)
    found = curve.true_positives / (curve.true_positives + curve.false_positives)
    np.testing.assert_allclose(found[::-1], precision[:-1])
    np.testing.assert_allclose((curve.true_positives / curve.positives)[::-1], recall[:-1])


def test_the_interval_is_as_wide_as_the_standard_error_of_hanley_and_mcneil():
    scores, is_positive = random_scores(1000, seed=1)
    roc, average_precision = estimate_areas(scores, is_positive, seed=0)
    positives = is_positive.sum()
    negatives = len(scores) - positives
    a = roc.value
    variance = a * (1 - a) + (positives - 1) * (a / (2 - a) - a**2)
    variance += (negatives - 1) * (2 * a**2 / (1 + a) - a**2)
    error = np.sqrt(variance / (positives * negatives))
    low, high = roc.interval
    assert low < roc.value < high
    assert (high - low) / (2 * 1.96) == pytest.approx(error, rel=0.15)
    low, high = average_precision.interval
    assert low < average_precision.value < high
    assert estimate_areas(scores, is_positive, seed=0) == (roc, average_precision)


def test_counts_at_every_stop_are_those_of_the_threshold_as_it_is_written():
    generator = np.random.default_rng(2)
    scores = np.concatenate([generator.beta(0.02, 0.02, 3000), [0.0, 1.0, 1.0, 0.5]]).astype(np.float32)
    is_positive = generator.random(len(scores)) < scores
    curve = compute_curve(scores, is_positive)
    stops = choose_stops(curve, 100)
    assert len(stops.thresholds) <= 100
    assert (stops.true_positives[0], stops.false_positives[0]) == (0, 0)
    for text, hits, alarms in zip(
        stops.thresholds[1:], stops.true_positives[1:], stops.false_positives[1:], strict=True
    ):
        is_found = scores.astype(np.float64) >= float(text)
        assert (hits, alarms) == ((is_found & is_positive).sum(), (is_found & ~is_positive).sum())
    assert stops.thresholds[stops.start] == "0.5"
    assert (stops.true_positives[-1], stops.false_positives[-1]) == (curve.positives, curve.negatives)


def test_thresholds_are_written_with_few_digits():
    scores = np.random.default_rng(3).random(300).astype(np.float32)
    stops = choose_stops(compute_curve(scores, scores > 0.3), 100)
    assert np.mean([len(text) for text in stops.thresholds]) < 7


def test_one_kind_of_images_has_no_curve():
    assert compute_curve(SCORES, np.ones(5, np.bool_)) is None
    assert estimate_areas(SCORES, np.zeros(5, np.bool_), seed=0) is None


def test_scores_below_one_half_start_at_no_image():
    curve = compute_curve(np.float32([0.4, 0.3, 0.2]), np.array([True, False, True]))
    stops = choose_stops(curve, 10)
    assert stops.start == 0
    assert float(stops.thresholds[0]) > 0.4
