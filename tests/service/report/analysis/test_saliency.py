"""Saliency maps: networks whose gradients are known, and the axioms of integrated gradients."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from service.report.analysis.network import Network
from service.report.analysis.saliency import (
    COMPLETENESS_TOLERANCE,
    INTEGRATION_STEPS,
    MAX_INTEGRATION_STEPS,
    SMOOTHGRAD_NOISE,
    SMOOTHGRAD_SAMPLES,
    compute_saliency,
)

L = keras.layers
RNG = np.random.default_rng(0)


def test_the_saliency_of_a_linear_network_is_its_kernel():
    shape = (2, 3, 2)
    kernel = RNG.normal(size=(np.prod(shape), 3)).astype(np.float32)
    model = keras.Sequential([L.Input(shape), L.Flatten(), L.Dense(3, use_bias=False)])
    model.set_weights([kernel])
    images = RNG.integers(0, 256, (4, *shape)).astype(np.uint8)
    classes = np.array([2, 0, 1, 2])
    saliency = compute_saliency(Network(model, 0.5), images, classes)
    gradient = kernel.T[classes].reshape(4, *shape) * 0.5
    np.testing.assert_allclose(saliency.gradient, gradient, rtol=1e-5)
    np.testing.assert_allclose(saliency.smoothgrad, np.abs(gradient), rtol=1e-5)
    np.testing.assert_allclose(saliency.integrated_gradients, gradient * images, rtol=1e-4, atol=1e-4)
    difference = (gradient * images).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(saliency.logit_difference, difference, rtol=1e-4)


def test_integrated_gradients_sum_to_the_difference_to_a_black_image():
    keras.utils.set_random_seed(2)
    layers = [
        L.Conv2D(4, 3, activation="relu"),
        L.Conv2D(4, 3, activation="gelu"),
        L.GlobalAveragePooling2D(),
        L.Dense(3),
    ]
    network = Network(keras.Sequential([L.Input((9, 8, 3)), *layers]), 1 / 255)
    images = RNG.integers(0, 256, (5, 9, 8, 3)).astype(np.uint8)
    classes = np.array([0, 1, 2, 1, 0])
    saliency = compute_saliency(network, images, classes)
    logits = network.run(images).logits.numpy()
    black_logits = network.run(np.zeros_like(images)).logits.numpy()
    difference = (logits - black_logits)[np.arange(5), classes]
    np.testing.assert_allclose(saliency.logit_difference, difference, rtol=1e-4, atol=1e-6)
    error = np.abs(saliency.integrated_gradients.sum(axis=(1, 2, 3)) - saliency.logit_difference)
    assert error.max() < 0.02 * np.abs(difference).max()
    np.testing.assert_allclose(
        saliency.completeness_error, error / np.abs(saliency.logit_difference), rtol=1e-3
    )


def steep_network(width: float) -> Network:
    """A network whose logit rises by 1 where the first pixel passes from 100 to 100 + `width`."""
    model = keras.Sequential(
        [L.Input((1, 2, 1)), L.Conv2D(2, 1, activation="relu"), L.Flatten(), L.Dense(2, use_bias=False)]
    )
    weights = np.array([[1, 0], [-1, 0], [0, 0], [0, 0]]) / width
    model.set_weights([np.ones((1, 1, 1, 2)), np.array([-100.0, -100.0 - width]), weights])
    return Network(model, head="logits")


def test_steps_are_doubled_until_integrated_gradients_are_complete():
    images = np.array([[[[200], [0]]], [[[90], [0]]]], np.uint8)
    saliency = compute_saliency(steep_network(width=3), images, np.array([0, 0]))
    assert saliency.steps[0] > INTEGRATION_STEPS  # of which each is wider than the rise
    assert saliency.steps[1] == INTEGRATION_STEPS  # nothing rises on the way to 90
    assert saliency.completeness_error.max() <= COMPLETENESS_TOLERANCE
    assert saliency.integrated_gradients[0, 0, 0, 0] == pytest.approx(1, rel=COMPLETENESS_TOLERANCE)


def test_incomplete_integrated_gradients_are_reported():
    images = np.array([[[[200], [0]]]], np.uint8)
    saliency = compute_saliency(steep_network(width=0.01), images, np.array([0]))
    assert saliency.steps.tolist() == [MAX_INTEGRATION_STEPS]
    assert saliency.completeness_error[0] > COMPLETENESS_TOLERANCE


def test_smoothgrad_finds_gradients_that_a_flat_region_hides():
    """A unit with a threshold of 130: its gradient is 0 at 120, with noise of deviation 18 often not."""
    model = keras.Sequential(
        [L.Input((1, 2, 1)), L.Conv2D(1, 1, activation="relu"), L.Flatten(), L.Dense(2, use_bias=False)]
    )
    model.set_weights([np.ones((1, 1, 1, 1)), np.array([-130.0]), np.array([[1.0, 0], [0, 1]])])
    image = np.array([[[[120], [0]]]], np.uint8)
    saliency = compute_saliency(Network(model), image, np.array([0]), seed=4)
    assert not saliency.gradient.any()
    generator = np.random.default_rng(4)
    is_above_threshold = []
    for _ in range(SMOOTHGRAD_SAMPLES):
        noise = generator.normal(size=(1, 2, 1)).astype(np.float32)[0, 0, 0]
        is_above_threshold.append(120 + 120 * SMOOTHGRAD_NOISE * noise > 130)
    fraction = np.mean(is_above_threshold)
    assert saliency.smoothgrad[0, 0, :, 0].tolist() == pytest.approx([fraction, 0])
    assert 0 < fraction < 1
