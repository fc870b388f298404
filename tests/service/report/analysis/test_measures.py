"""Measures of heatmaps: exact values on tiny maps, and wrong maps that each fail one of the scores."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import scipy.stats

from service.report.analysis.measures import (
    compute_box_energy,
    compute_edge_strength,
    compute_perturbation_curves,
    compute_ranks,
    find_distractor,
    find_peak,
    is_inside_box,
    randomize_weights,
    spearman,
)

L = keras.layers
RNG = np.random.default_rng(0)


def test_rank_correlation_is_that_of_scipy_with_shared_ranks():
    for _ in range(5):
        a = RNG.integers(0, 4, (3, 5))
        b = RNG.normal(size=(3, 5))
        expected = scipy.stats.spearmanr(a.ravel(), b.ravel()).statistic
        assert spearman(a, b) == pytest.approx(expected, abs=1e-12)
    assert compute_ranks(np.array([7, 1, 7, 3])).tolist() == [3.5, 1, 3.5, 2]
    assert spearman(np.arange(6.0), -np.arange(6.0)) == pytest.approx(-1)


def test_rank_correlation_with_a_constant_map_is_0():
    assert spearman(np.zeros(4), np.arange(4.0)) == 0


def small_model() -> keras.Model:
    layers = [L.Conv2D(3, 2), L.BatchNormalization(), L.Flatten(), L.Dense(2)]
    return keras.Sequential([L.Input((4, 4, 1)), *layers])


def find_changed(before: list[np.ndarray], after: list[np.ndarray]) -> list[int]:
    """Indices of the arrays that differ."""
    return [n for n, (a, b) in enumerate(zip(before, after, strict=True)) if not np.array_equal(a, b)]


def test_randomized_kernels_keep_their_values_and_are_restored():
    model = small_model()
    before = [weights.copy() for weights in model.get_weights()]
    kernels = [n for n, weights in enumerate(before) if weights.ndim >= 2]
    with randomize_weights(model, 1):
        after = model.get_weights()
    assert find_changed(before, after) == kernels
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(np.sort(a, axis=None), np.sort(b, axis=None))
    with randomize_weights(model, 1, last_only=True):
        assert find_changed(before, model.get_weights()) == kernels[-1:]
    assert find_changed(before, model.get_weights()) == []


def test_weights_are_restored_after_an_error():
    model = small_model()
    before = [weights.copy() for weights in model.get_weights()]
    with pytest.raises(ZeroDivisionError), randomize_weights(model, 2):
        _ = 1 / 0
    assert find_changed(before, model.get_weights()) == []


def predict_by_bright_pixel(images: np.ndarray) -> np.ndarray:
    """Class 1 if a pixel is brighter than 200, else class 0; float `[N, 2]`."""
    is_bright = images.max(axis=(1, 2, 3)) > 200
    return np.stack([~is_bright, is_bright], axis=1).astype(float)


def test_pixels_are_removed_in_the_order_of_the_map():
    """The prediction depends on one bright pixel; one map ranks it first, the other one last."""
    images = np.full((2, 2, 5, 1), 50.0)
    images[0, 0, 3] = 250
    images[1, 1, 0] = 250
    faithful = np.zeros((2, 2, 5), np.float32)
    faithful[0, 0, 3] = 1
    faithful[1, 1, 0] = 1
    bright = np.array([1, 1])
    curves = compute_perturbation_curves(predict_by_bright_pixel, images, bright, faithful, seed=0)
    assert curves.deletion.tolist() == [1] + [0] * 10
    assert curves.insertion.tolist() == [0] + [1] * 10
    deletion, insertion = curves.compute_areas()
    assert deletion == pytest.approx([0.05, 0.05])
    assert insertion == pytest.approx([0.95, 0.95])
    curves = compute_perturbation_curves(predict_by_bright_pixel, images, bright, -faithful, seed=0)
    assert curves.deletion.tolist() == [1] * 10 + [0]
    assert curves.insertion.tolist() == [0] * 10 + [1]
    dark = np.array([0, 0])
    curves = compute_perturbation_curves(predict_by_bright_pixel, images, dark, faithful, seed=0)
    assert curves.deletion.tolist() == [0] + [1] * 10


def test_removed_pixels_take_the_mean_colour():
    inputs: list[np.ndarray] = []

    def record_inputs(images: np.ndarray) -> np.ndarray:
        inputs.append(images)
        return np.ones((1, 2))

    image = np.zeros((1, 1, 2, 3))
    image[0, 0, 0] = (10, 20, 40)
    heatmap = np.array([[[1.0, 0.0]]], np.float32)
    compute_perturbation_curves(record_inputs, image, np.array([0]), heatmap, seed=0)
    # Two inputs per step: at step 5 of 10 one of the two pixels is removed, then the other.
    deletion, insertion = inputs[10:12]
    np.testing.assert_array_equal(deletion[0, 0], [[5, 10, 20], [0, 0, 0]])
    np.testing.assert_array_equal(insertion[0, 0], [[10, 20, 40], [5, 10, 20]])


def test_peaks_and_boxes_do_not_confuse_rows_and_columns():
    values = np.zeros((2, 4))
    values[1, 0] = 3
    assert find_peak(values) == (0.75, 0.125)
    assert is_inside_box((0.75, 0.125), (0.5, 0.0, 1.0, 0.25))
    assert not is_inside_box((0.75, 0.125), (0.0, 0.5, 0.25, 1.0))
    values[0, 3] = 1
    assert compute_box_energy(values, (0.5, 0.0, 1.0, 0.25)) == 0.75
    assert compute_box_energy(values, (0.0, 0.5, 0.5, 1.0)) == 0.25


def test_an_empty_map_has_no_energy_in_a_box():
    assert compute_box_energy(np.zeros((2, 2)), (0, 0, 1, 1)) == 0


def test_the_distractor_is_at_the_strongest_edges_outside_the_box():
    image = np.full((40, 60, 3), 100.0)
    image[5:12:2, 40:50] = 255  # strong stripes inside the box
    image[25:35:2, 5:15] = 200  # weaker ones elsewhere
    box = (0.1, 0.65, 0.32, 0.85)
    assert is_inside_box(find_peak(compute_edge_strength(image)), box)
    assert is_inside_box(find_distractor(image, box), (25 / 40, 5 / 60, 35 / 40, 15 / 60))
