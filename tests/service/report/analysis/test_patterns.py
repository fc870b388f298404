"""Filter patterns: linear filters whose image is known, the published loop, filters without gradient."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from service.report.analysis.network import Network
from service.report.analysis.patterns import (
    BATCH,
    choose_pattern_size,
    compute_filter_patterns,
    deprocess_patterns,
)

L = keras.layers


def build_network(
    *layers: keras.Layer, shape: tuple[int, int, int] = (6, 8, 3), scale: float = 1.0
) -> Network:
    return Network(keras.Sequential([L.Input(shape), *layers, L.GlobalAveragePooling2D(), L.Dense(2)]), scale)


def draw_noise(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """The noise that gradient ascent starts from."""
    return np.random.default_rng(seed).uniform(118, 138, shape).astype(np.float32)


def test_the_pattern_of_a_linear_filter_follows_its_kernel():
    """The gradient of a 1x1 filter is its kernel everywhere: each step adds it over its root mean square."""
    kernel = np.array([[3.0, 0.0], [4.0, 0.0], [0.0, -2.0]], np.float32).reshape(1, 1, 3, 2)
    network = build_network(L.Conv2D(2, 1, name="c", use_bias=False))
    network.model.get_layer("c").set_weights([kernel])
    patterns = compute_filter_patterns(network, "c", [1, 0], steps=5, seed=3)
    noise = draw_noise((6, 8, 3), seed=3)
    for index, number in enumerate((1, 0)):
        weights = kernel[0, 0, :, number]
        image = patterns.images[index]
        direction = weights / np.sqrt((weights**2).mean())
        np.testing.assert_allclose(image - noise, np.broadcast_to(5 * direction, (6, 8, 3)), atol=1e-4)
        assert patterns.initial_activation[index] == pytest.approx((noise @ weights).mean(), rel=1e-5)
        assert patterns.final_activation[index] == pytest.approx((image @ weights).mean(), rel=1e-5)
    assert not patterns.is_unresponsive.any()


def run_published_loop(
    model: keras.Model, layer: str, number: int, steps: int, noise: np.ndarray
) -> np.ndarray:
    """Gradient ascent for a single filter, through a model up to its layer (F. Chollet, 2016)."""
    inner = keras.Model(model.inputs, model.get_layer(layer).output)
    image = tf.Variable(noise)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(inner(image)[..., number])
        gradient = tape.gradient(loss, image)
        image.assign_add(gradient / tf.sqrt(tf.reduce_mean(tf.square(gradient))))
    return image.numpy()[0]


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_patterns_equal_those_of_the_published_loop(padding):
    keras.utils.set_random_seed(5)
    deep = L.Conv2D(BATCH + 3, 3, strides=2, padding=padding, activation="relu", name="deep")
    network = build_network(L.Conv2D(5, 3, activation="elu"), L.MaxPooling2D(), deep, shape=(16, 18, 3))
    noise = draw_noise((16, 18, 3))[None]
    filters = [BATCH + 2, *range(BATCH)]
    patterns = compute_filter_patterns(network, "deep", filters, steps=4)
    # The published loop does not leave the noise where a filter is inactive for it.
    compared = np.flatnonzero(patterns.initial_activation > 0)
    assert len(compared) >= 5
    for index in compared:
        published = run_published_loop(network.model, "deep", filters[index], 4, noise)
        np.testing.assert_allclose(patterns.images[index], published, atol=5e-4)
        assert patterns.final_activation[index] > patterns.initial_activation[index]


def test_a_dead_filter_is_unresponsive_and_an_inactive_one_is_activated():
    kernel = np.zeros((1, 1, 3, 3), np.float32)
    kernel[..., 0, 0] = 1  # red
    kernel[..., 1, 2] = 1  # green; filter 1 has only zeros
    network = build_network(L.Conv2D(3, 1, activation="relu", name="c"))
    network.model.get_layer("c").set_weights([kernel, np.array([0.0, -1.0, -150.0], np.float32)])
    patterns = compute_filter_patterns(network, "c", [0, 1, 2])
    assert patterns.is_unresponsive.tolist() == [False, True, False]
    assert patterns.initial_activation[1] == patterns.final_activation[1] == 0
    assert patterns.initial_activation[2] == 0 < patterns.final_activation[2]


def test_the_pixel_scale_of_a_model_does_not_change_its_patterns():
    keras.utils.set_random_seed(1)
    network = build_network(L.Conv2D(2, 3, name="c", use_bias=False), scale=1.0)
    scaled = Network(network.model, 1 / 255)
    np.testing.assert_allclose(
        compute_filter_patterns(network, "c", [0, 1]).images,
        compute_filter_patterns(scaled, "c", [0, 1]).images,
        atol=1e-3,
    )


def test_deprocessed_patterns_have_mean_128_and_deviation_64():
    images = np.array([[[[0.0], [2.0]]], [[[5.0], [5.0]]]])
    pixels = deprocess_patterns(images)
    assert pixels[..., 0].tolist() == [[[64, 192]], [[128, 128]]]
    assert pixels.dtype == np.uint8


def test_patterns_are_smaller_than_large_images_where_the_layers_allow_it():
    network = build_network(L.Conv2D(2, 1, name="c"), shape=(256, 128, 3))
    assert choose_pattern_size(network, "c") == (128, 64)
    images = compute_filter_patterns(network, "c", [0], steps=1, size=(128, 64)).images
    assert images.shape == (1, 128, 64, 3)
    reshaping = [L.Flatten(), L.Reshape((256, 128, 3))]
    fixed = build_network(*reshaping, L.Conv2D(2, 1, name="c"), shape=(256, 128, 3))
    assert choose_pattern_size(fixed, "c") == (256, 128)
