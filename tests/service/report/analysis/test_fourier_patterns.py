"""Patterns in the Fourier basis: closed forms of its parts, and a filter whose best pattern is known."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from service.report.analysis import fourier_patterns
from service.report.analysis.fourier_patterns import (
    ImageDecoder,
    build_transform,
    compute_fourier_patterns,
    compute_scales,
    draw_shifts,
    draw_transforms,
    find_patch,
    measure_colours,
    transform_images,
)
from service.report.analysis.network import Network
from service.report.analysis.receptive_field import ReceptiveField, compute_receptive_fields

L = keras.layers
GREY = np.ones((1, 1))


@pytest.mark.parametrize(("height", "width"), [(12, 20), (15, 9)])
def test_one_coefficient_is_one_wave(height, width):
    """A real coefficient at (u, v) is a cosine, an imaginary one a sine; amplitude 1 / frequency."""
    for u, v in ((0, 2), (3, 1), (-2, 3)):
        coefficients = np.zeros((2, 2, 1, height, width // 2 + 1), np.float32)
        coefficients[0, 0, 0, u, v] = 0.3
        coefficients[1, 1, 0, u, v] = 0.3
        images = ImageDecoder(height, width, GREY)(tf.constant(coefficients)).numpy()[..., 0] / 255
        values = np.log(images / (1 - images))
        y, x = np.mgrid[:height, :width]
        phase = 2 * math.pi * (u * y / height + v * x / width)
        frequency = math.hypot(u / height, v / width)
        amplitude = 2 * 0.3 / frequency / 4 / math.sqrt(height * width)
        np.testing.assert_allclose(values[0], amplitude * np.cos(phase), atol=1e-4)
        np.testing.assert_allclose(values[1], -amplitude * np.sin(phase), atol=1e-4)


def test_scales_fall_with_the_frequency_and_are_finite_at_zero():
    scales = compute_scales(32, 32)
    assert scales.shape == (32, 17)
    assert scales[0, 0] == scales[0, 1] == scales[1, 0] == scales[-1, 0]
    assert scales[0, 8] == pytest.approx(scales[0, 1] / 8)
    assert scales[16, 0] == pytest.approx(scales[0, 16])
    assert scales[3, 4] == pytest.approx(scales[0, 5])


def test_noise_has_the_spectrum_of_natural_images():
    """The power of the waves falls with the square of the frequency: slope -2 in logarithms."""
    generator = np.random.default_rng(0)
    coefficients = generator.normal(0, 0.02, (40, 2, 1, 64, 33)).astype(np.float32)
    images = ImageDecoder(64, 64, GREY)(tf.constant(coefficients)).numpy()[..., 0]
    power = (np.abs(np.fft.rfft2(images - images.mean(axis=(1, 2), keepdims=True))) ** 2).mean(axis=0)
    frequencies = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.rfftfreq(64)[None])
    chosen = (frequencies > 0.05) & (frequencies < 0.4)
    slope = np.polyfit(np.log(frequencies[chosen]), np.log(power[chosen]), 1)[0]
    assert slope == pytest.approx(-2, abs=0.1)


def test_colours_follow_the_axes_of_the_pixels():
    generator = np.random.default_rng(0)
    axes = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]).T / np.sqrt([3, 2, 6])
    values = generator.normal(size=(4000, 3)) * (50, 20, 1)
    pixels = np.clip(128 + values @ axes.T, 0, 255).round().astype(np.uint8).reshape(4, 25, 40, 3)
    colours = measure_colours(pixels)
    np.testing.assert_allclose(np.abs(colours[:, 0]), np.abs(axes[:, 0]), atol=0.03)
    np.testing.assert_allclose(np.abs(colours[:, 1]), np.abs(axes[:, 1]) * 0.4, atol=0.03)
    # The third deviation is a fiftieth; it is raised to the smallest length.
    assert np.linalg.norm(colours[:, 2]) == pytest.approx(fourier_patterns.MIN_COLOUR)
    assert (colours[:, 0] > 0).all()
    product = colours.T @ colours
    np.testing.assert_allclose(product, np.diag(np.diag(product)), atol=1e-9)


def test_colours_of_grey_images():
    assert measure_colours(np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)).tolist() == [[1]]
    assert measure_colours(np.zeros((1, 4, 4, 1), np.uint8)).tolist() == [[1]]
    lengths = np.linalg.norm(measure_colours(np.full((1, 4, 4, 3), 9, np.uint8)), axis=0)
    np.testing.assert_allclose(lengths, [1, fourier_patterns.MIN_COLOUR, fourier_patterns.MIN_COLOUR])


@pytest.mark.parametrize("side", [6, 7])
def test_transforms_are_exact_for_known_angles(side):
    images = np.random.default_rng(0).uniform(0, 255, (2, side, side, 3)).astype(np.float32)

    def transform(scale: float, angle: float) -> np.ndarray:
        matrix = tf.constant(build_transform(scale, angle, side, side), tf.float32)
        return transform_images(tf.constant(images), matrix).numpy()

    np.testing.assert_allclose(transform(1, 0), images, atol=1e-3)
    np.testing.assert_allclose(transform(1, math.pi / 2), np.rot90(images, 1, (1, 2)), atol=2e-2)
    np.testing.assert_allclose(transform(1, math.pi), np.rot90(images, 2, (1, 2)), atol=2e-2)
    if side == 7:  # enlarged twice about the centre, every other pixel is one of the original
        np.testing.assert_allclose(transform(2, 0)[:, 1::2, 1::2], images[:, 2:5, 2:5], atol=1e-3)


def test_transforms_are_small_and_reproducible():
    shifts = draw_shifts(np.random.default_rng(3), 200, 40, 80)
    assert np.abs(shifts).max(axis=0).tolist() == [10, 20]
    transforms = draw_transforms(np.random.default_rng(3), 200, 40, 80)
    scales = 1 / np.sqrt(transforms[:, 0] ** 2 + transforms[:, 3] ** 2)
    angles = np.arctan2(transforms[:, 3], transforms[:, 0])
    assert 1.05 < scales.max() < math.exp(fourier_patterns.SCALE) + 1e-6
    assert math.radians(6) < np.abs(angles).max() <= fourier_patterns.ROTATION + 1e-6
    np.testing.assert_array_equal(transforms, draw_transforms(np.random.default_rng(3), 200, 40, 80))


def build_gabor(side: int, angle: float) -> np.ndarray:
    """A wave of four pixels under a bell curve, with mean zero."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    wave = np.cos(2 * math.pi / 4 * (x * math.cos(angle) + y * math.sin(angle)))
    kernel = wave * np.exp(-(x**2 + y**2) / (2 * (side / 4) ** 2))
    return kernel - kernel.mean()


def build_gabor_network(channels: int) -> Network:
    kernels = [build_gabor(9, 0), build_gabor(9, math.pi / 2)]
    convolution = L.Conv2D(2, 9, activation="relu", name="c")
    model = keras.Sequential(
        [
            L.Input((32, 32, channels)),
            L.Rescaling(1 / 255),
            convolution,
            L.GlobalAveragePooling2D(),
            L.Dense(2),
        ]
    )
    kernel = np.stack(kernels, axis=-1)[:, :, None].repeat(channels, axis=2)
    convolution.set_weights([kernel, np.zeros(2)])
    return Network(model)


@pytest.mark.parametrize("channels", [1, 3])
def test_patterns_of_gabor_filters_are_their_waves(channels):
    """The spectrum peaks at the wave of the filter, and the best window is the filter itself."""
    network = build_gabor_network(channels)
    field = compute_receptive_fields(network)["c"]
    patterns = compute_fourier_patterns(network, "c", [1, 0], np.eye(channels), field, steps=24)
    assert patterns.images.shape == (2, 32, 32, channels)
    assert not patterns.is_unresponsive.any()
    for index, angle in ((0, math.pi / 2), (1, 0.0)):
        image = patterns.images[index].mean(axis=-1)
        windows = np.lib.stride_tricks.sliding_window_view(image, (9, 9)).reshape(-1, 81)
        windows = windows - windows.mean(axis=1, keepdims=True)
        kernel = build_gabor(9, angle).ravel()
        bell = np.abs(kernel) > np.abs(kernel).max() / 10  # where the filter looks
        seen = windows * bell
        similarity = seen @ kernel / np.linalg.norm(seen, axis=1) / np.linalg.norm(kernel)
        assert similarity.max() > 0.8
        other = build_gabor(9, math.pi / 2 - angle).ravel()
        assert (
            similarity.max() > 2 * (seen @ other / np.linalg.norm(seen, axis=1) / np.linalg.norm(other)).max()
        )
    again = compute_fourier_patterns(network, "c", [1, 0], np.eye(channels), field, steps=24)
    np.testing.assert_array_equal(patterns.images, again.images)
    alone = compute_fourier_patterns(network, "c", [0], np.eye(channels), field, steps=24)
    np.testing.assert_allclose(alone.images[0], patterns.images[1], atol=0.5)
    other_seed = compute_fourier_patterns(network, "c", [0], np.eye(channels), field, steps=2, seed=1)
    assert np.abs(other_seed.images[0] - alone.images[0]).max() > 1


def test_the_scale_of_activations_does_not_matter():
    """An untrained network may have activations of 1e-11."""
    network = build_gabor_network(1)
    field = compute_receptive_fields(network)["c"]
    expected = compute_fourier_patterns(network, "c", [0], GREY, field, steps=6)
    kernel, bias = network.model.get_layer("c").get_weights()
    network.model.get_layer("c").set_weights([kernel * 1e-12, bias])
    found = compute_fourier_patterns(network, "c", [0], GREY, field, steps=6)
    np.testing.assert_allclose(found.images, expected.images, atol=1)
    assert np.abs(found.images - 127.5).max() > 20


def test_patterns_of_tokens():
    """Channel 0 of the patches grows with brightness, channel 1 falls with it."""
    image = keras.Input((8, 12, 1))
    x = L.Reshape((6, 2))(L.Conv2D(2, 4, strides=4)(image))
    tokens = L.Activation("linear", name="tokens")(x)
    model = keras.Model(image, L.Dense(2)(L.GlobalAveragePooling1D()(tokens)))
    model.layers[1].set_weights([np.stack([np.ones((4, 4, 1)), -np.ones((4, 4, 1))], axis=-1), np.zeros(2)])
    network = Network(model)
    field = compute_receptive_fields(network)["tokens"]
    patterns = compute_fourier_patterns(network, "tokens", [0, 1], GREY, field, steps=12)
    assert patterns.images[0].mean() > 135
    assert patterns.images[1].mean() < 120
    assert (patterns.final_activation > patterns.initial_activation).all()


def test_patterns_of_patches_repeat_from_patch_to_patch():
    """The best image of a patch embedding is its kernel in every patch."""
    kernel = np.random.default_rng(0).normal(size=(4, 4, 1, 2)).astype(np.float32)
    model = keras.Sequential(
        [L.Input((16, 16, 1)), L.Conv2D(2, 4, strides=4, name="p"), L.GlobalAveragePooling2D(), L.Dense(2)]
    )
    network = Network(model)
    model.get_layer("p").set_weights([kernel - kernel.mean(axis=(0, 1)), np.zeros(2)])
    field = compute_receptive_fields(network)["p"]
    assert find_patch(field) == (4, 4)
    images = compute_fourier_patterns(network, "p", [0, 1], GREY, field, steps=24).images
    for number in range(2):
        mean_patch = images[number, ..., 0].reshape(4, 4, 4, 4).mean(axis=(0, 2))
        assert np.corrcoef(mean_patch.ravel(), kernel[..., 0, number].ravel())[0, 1] > 0.7


def test_layers_without_patches():
    assert find_patch(ReceptiveField((3, 3), (1, 1), (0, 0))) is None
    assert find_patch(ReceptiveField((1, 1), (1, 1), (0, 0))) is None
    assert find_patch(ReceptiveField((4, 4), (4, 4), (0, 0), is_global=True)) is None


def test_a_dead_filter_is_unresponsive():
    network = build_gabor_network(1)
    network.model.get_layer("c").set_weights([np.zeros((9, 9, 1, 2)), np.array([-1.0, -1.0])])
    field = compute_receptive_fields(network)["c"]
    patterns = compute_fourier_patterns(network, "c", [0], GREY, field, steps=2)
    assert patterns.is_unresponsive.tolist() == [True]
