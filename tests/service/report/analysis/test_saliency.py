"""Pixels that count: networks whose gradients are known, and the axioms of integrated gradients."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from service.report.analysis.network import Network
from service.report.analysis.saliency import SMOOTHGRAD_NOISE, SMOOTHGRAD_SAMPLES, compute_saliency

L = keras.layers
RNG = np.random.default_rng(0)


def dense(kernel: np.ndarray, shape: tuple[int, int, int]) -> Network:
    model = keras.Sequential([L.Input(shape), L.Flatten(), L.Dense(kernel.shape[1], use_bias=False)])
    model.set_weights([kernel])
    return Network(model, 0.5)


def test_a_linear_network_is_its_own_saliency():
    kernel = RNG.normal(size=(2 * 3 * 2, 3)).astype(np.float32)
    images = RNG.integers(0, 256, (4, 2, 3, 2)).astype(np.uint8)
    classes = np.array([2, 0, 1, 2])
    found = compute_saliency(dense(kernel, (2, 3, 2)), images, classes)
    wanted = kernel.T[classes].reshape(4, 2, 3, 2) * 0.5
    np.testing.assert_allclose(found.gradient, wanted, rtol=1e-5)
    np.testing.assert_allclose(found.smoothgrad, np.abs(wanted), rtol=1e-5)
    np.testing.assert_allclose(found.integrated_gradients, wanted * images, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.logit_difference, (wanted * images).sum(axis=(1, 2, 3)), rtol=1e-4)


def test_integrated_gradients_sum_to_the_logit_less_that_of_black():
    keras.utils.set_random_seed(2)
    layers = [
        L.Conv2D(4, 3, activation="relu"),
        L.Conv2D(4, 3, activation="gelu"),
        L.GlobalAveragePooling2D(),
        L.Dense(3),
    ]
    network = Network(keras.Sequential([L.Input((9, 8, 3)), *layers]), 1 / 255)
    images, classes = RNG.integers(0, 256, (5, 9, 8, 3)).astype(np.uint8), np.array([0, 1, 2, 1, 0])
    found = compute_saliency(network, images, classes)
    logits, black = network.run(images).logits.numpy(), network.run(np.zeros_like(images)).logits.numpy()
    np.testing.assert_allclose(
        found.logit_difference, (logits - black)[np.arange(5), classes], rtol=1e-4, atol=1e-6
    )
    assert (
        np.abs(found.integrated_gradients.sum(axis=(1, 2, 3)) - found.logit_difference).max()
        < 0.02 * np.abs(found.logit_difference).max()
    )
    np.testing.assert_allclose(
        found.completeness_error,
        np.abs(found.integrated_gradients.sum(axis=(1, 2, 3)) - found.logit_difference) / np.abs(found.logit_difference),
        rtol=1e-3,
    )


def test_noise_shows_what_a_flat_place_hides():
    """A unit that answers from 130 on: at 120 its gradient is 0, with noise of deviation 0.15 * 120 it mostly is not."""
    model = keras.Sequential(
        [L.Input((1, 2, 1)), L.Conv2D(1, 1, activation="relu"), L.Flatten(), L.Dense(2, use_bias=False)]
    )
    model.set_weights([np.ones((1, 1, 1, 1)), np.array([-130.0]), np.array([[1.0, 0], [0, 1]])])
    image = np.array([[[[120], [0]]]], np.uint8)
    found = compute_saliency(Network(model), image, np.array([0]), seed=4)
    assert not found.gradient.any()
    noise = np.random.default_rng(4)
    over = [
        120 + 120 * SMOOTHGRAD_NOISE * noise.normal(size=(1, 2, 1)).astype(np.float32)[0, 0, 0] > 130
        for _ in range(SMOOTHGRAD_SAMPLES)
    ]
    assert found.smoothgrad[0, 0, :, 0].tolist() == pytest.approx([np.mean(over), 0])
    assert 0 < np.mean(over) < 1
