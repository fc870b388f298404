"""Calibration: bins, expected calibration error and temperature against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from service.report.analysis.calibration import (
    BINS,
    assess_calibration,
    compute_confidences,
    compute_reliability,
    cross_validate_temperature,
    estimate_error,
    find_bins,
)
from service.report.sections.calibration import format_temperature

EDGE = 9 / 15


def repeat(*groups: tuple[float, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns confidences and correctness of groups (confidence, images, correct ones)."""
    confidences = np.concatenate([np.full(images, confidence) for confidence, images, _ in groups])
    is_correct = np.concatenate([np.arange(images) < correct for _, images, correct in groups])
    return confidences, is_correct


def two_classes(*groups: tuple[float, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities `[N, 2]`, as of a single unit, and labels of such groups, in mixed order."""
    confidences, is_correct = repeat(*groups)
    order = np.random.default_rng(0).permutation(len(confidences))
    predicted = np.arange(len(order)) % 2
    of_predicted = confidences[order]
    probabilities = np.where(predicted[:, None] == [0, 1], of_predicted[:, None], 1 - of_predicted[:, None])
    labels = np.where(is_correct[order], predicted, 1 - predicted)
    return probabilities.astype(np.float32), labels.astype(np.int32)


def test_a_bin_includes_its_upper_edge_alone():
    assert find_bins(np.array([0.0, 0.01, EDGE, EDGE + 1e-9, 1.0])).tolist() == [0, 0, 8, 9, BINS - 1]
    # 0.55 and the edge 0.6 are in one bin, and their errors cancel in part: |0.4 - 0.55| / 2.
    reliability = compute_reliability(np.array([0.55, EDGE]), np.array([False, True]))
    assert reliability.error == pytest.approx(0.075)
    assert reliability.accuracies[8] == 0.5
    assert reliability.confidences[8] == pytest.approx(0.575)


def test_the_error_weighs_every_bin_by_its_predictions():
    confidences, is_correct = repeat((0.95, 80, 60), (0.55, 20, 15))
    reliability = compute_reliability(confidences, is_correct)
    assert reliability.error == pytest.approx(0.8 * (0.95 - 0.75) + 0.2 * (0.75 - 0.55))
    assert reliability.mean_gap == pytest.approx(0.8 * (0.95 - 0.75) - 0.2 * (0.75 - 0.55))
    assert estimate_error(confidences, is_correct, seed=0).value == pytest.approx(reliability.error)


def test_the_temperature_has_a_closed_form_for_one_confidence():
    probabilities, labels = two_classes((0.95, 400, 300))
    expected = math.log(0.95 / 0.05) / math.log(0.75 / 0.25)  # so that the confidence becomes 0.75
    calibration = assess_calibration(probabilities, labels, seed=0)
    assert calibration.temperature == pytest.approx(expected, rel=1e-4)
    assert compute_confidences(probabilities, expected) == pytest.approx(np.full(400, 0.75), abs=1e-5)
    assert calibration.error.value == pytest.approx(0.2, abs=1e-6)
    assert calibration.error_after.value < 0.06
    assert not calibration.error_after.is_significant
    assert calibration.correct.sum() == 300
    assert calibration.incorrect.sum() == 100


def test_confidences_after_a_temperature_do_not_depend_on_their_own_labels():
    probabilities, labels = two_classes((0.9, 100, 70))
    before = cross_validate_temperature(probabilities, labels)
    labels[0] = 1 - labels[0]
    after = cross_validate_temperature(probabilities, labels)
    assert after[0] == before[0]
    assert (after[1:5] != before[1:5]).all()


def test_classes_without_images_count_with_their_probabilities():
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(500, 5)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = generator.integers(0, 3, 500)  # classes 3 and 4 have no images
    calibration = assess_calibration(probabilities.astype(np.float32), labels, seed=0)
    confidences = probabilities.max(axis=1)
    is_correct = probabilities.argmax(axis=1) == labels
    expected = 0.0
    for low in np.arange(BINS) / BINS:
        is_inside = (confidences > low) & (confidences <= low + 1 / BINS)
        if is_inside.any():
            gap = abs(is_correct[is_inside].mean() - confidences[is_inside].mean())
            expected += is_inside.mean() * gap
    assert calibration.error.value == pytest.approx(expected, abs=1e-6)
    assert calibration.temperature > 1


def test_a_calibrated_model_is_not_accused_on_few_images():
    generator = np.random.default_rng(2)
    accused = 0
    for seed in range(20):
        confidences = generator.uniform(0.5, 1.0, 200)
        error = estimate_error(confidences, generator.random(200) < confidences, seed)
        assert error.value > 0.02  # chance alone
        assert error.corrected < error.value
        accused += error.is_significant
        assert error.is_significant or error.interval[0] == 0.0
    assert accused <= 3


def test_an_overconfident_model_is_accused_and_its_interval_covers_the_truth():
    generator = np.random.default_rng(3)
    confidences = generator.uniform(0.5, 1.0, 2000)
    error = estimate_error(confidences, generator.random(2000) < confidences - 0.2, seed=0)
    assert error.is_significant
    assert error.interval[0] < 0.2 < error.interval[1]
    assert error.interval[1] - error.interval[0] < 0.08


def test_few_images_have_no_calibration():
    probabilities, labels = two_classes((0.9, 49, 40))
    assert assess_calibration(probabilities, labels, seed=0) is None


def test_a_temperature_at_a_bound_of_the_search_is_shown_as_a_bound():
    """Probabilities that say nothing: the larger the temperature, the higher their likelihood."""
    probabilities = np.tile(np.array([[0.5001, 0.4999]], np.float32), (60, 1))
    labels = (np.arange(60) % 2).astype(np.int32)
    calibration = assess_calibration(probabilities, labels, seed=0)
    assert calibration.temperature == pytest.approx(20, rel=1e-4)
    assert format_temperature(calibration.temperature) == "20 or more"
    assert format_temperature(0.05) == "0.05 or less"
    assert format_temperature(0.7734) == "0.773"
