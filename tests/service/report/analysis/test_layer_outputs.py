"""Layer outputs: standardized channels, inactive channels, mean activation and sparsity, in closed form."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from service.report.analysis.activations import (
    FeatureMapOutputs,
    VectorOutputs,
    compute_activations,
    find_inactive_channels,
    quantize_channels,
    standardize_channels,
    standardize_vector,
    summarize_layer,
)
from service.report.analysis.network import LayerInfo, Network
from service.report.drawing.colours import FRAME_INDEX, INACTIVE_INDEX
from service.report.drawing.sheets import choose_scaling, draw_channel_sheet

L = keras.layers


def standardize_and_quantize(values: np.ndarray) -> np.ndarray:
    """The palette indices of a map: its mean is level 128 of 255, its standard deviation 64 levels."""
    levels = (values - values.mean()) / values.std() * 64 + 128
    return np.rint(np.clip(levels, 0, 255) * 253 / 255).astype(np.uint8)


def test_the_channels_of_a_known_convolution_become_a_known_sheet():
    """The channels are the image, its negative (0 after ReLU), its right and its lower neighbour."""
    model = keras.Sequential(
        [
            L.Input((3, 4, 1)),
            L.Conv2D(4, 2, activation="relu", name="convolution"),
            L.Flatten(),
            L.Dense(2, name="logits"),
        ]
    )
    kernel = np.zeros((2, 2, 1, 4), np.float32)
    kernel[0, 0, 0, 0] = 1
    kernel[0, 0, 0, 1] = -1
    kernel[0, 1, 0, 2] = 1
    kernel[1, 0, 0, 3] = 1
    model.get_layer("convolution").set_weights([kernel, np.zeros(4, np.float32)])
    network = Network(model)
    # Rows differ from columns: a transposition would show.
    image = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    outputs = compute_activations(network, image[None, :, :, None])["convolution"]
    channels = [image[:2, :3], np.zeros((2, 3)), image[:2, 1:], image[1:, :3]]
    np.testing.assert_allclose(outputs.mean_activation, [[np.mean(c) for c in channels]], rtol=1e-6)
    np.testing.assert_array_equal(outputs.is_inactive, [[False, True, False, False]])
    assert outputs.sparsity[0] == pytest.approx(7 / 24)  # the negative, and the black corner of the image

    scaling = choose_scaling(network.find_layer("convolution").shape)
    sheet = draw_channel_sheet(outputs.tiles[0], outputs.is_inactive[0], scaling)
    # Tiles of 16 x 24 pixels, each with a frame of one pixel to the right and below
    assert sheet.shape == (
        17,
        4 * 25,
    )
    for channel in (0, 2, 3):
        tile = np.kron(standardize_and_quantize(channels[channel].astype(float)), np.ones((8, 8)))
        np.testing.assert_array_equal(sheet[:16, 25 * channel : 25 * channel + 24], tile)
    assert (sheet[:16, 25:49] == INACTIVE_INDEX).all()
    assert (sheet[16] == FRAME_INDEX).all()
    assert (sheet[:, 24::25] == FRAME_INDEX).all()


def test_channels_are_standardized_for_each_image_or_by_given_statistics():
    values = np.array(
        [[[[0.0, -30.0, 7.0], [2.0, -10.0, 7.0]]], [[[5.0, 0.0, 1.0], [9.0, 0.0, -1.0]]]], np.float32
    )
    expected = [[[[64, 64, 128], [192, 192, 128]]], [[[64, 128, 192], [192, 128, 64]]]]
    np.testing.assert_array_equal(standardize_channels(values), expected)
    np.testing.assert_array_equal(
        standardize_channels(values[:1], np.float32([0, 0, 0]), np.float32([1, 20, 0])),
        [[[[128, 32, 128], [255, 96, 128]]]],
    )


def test_standardized_values_are_clipped_and_keep_their_sign():
    values = np.array([[[[0.0]] * 24 + [[1.0]]]], np.float32)
    levels = standardize_channels(values).numpy()[0, 0, :, 0]
    assert levels[24] == 255.0
    assert 0 < levels[0] < 128
    assert standardize_channels(-values).numpy()[0, 0, 24, 0] == 0.0


def test_units_of_a_vector_are_standardized_together():
    assert standardize_vector(np.array([0.0, 2.0, 0.0, 2.0])).tolist() == [64, 192, 64, 192]
    assert standardize_vector(np.array([-3.0, -1.0])).tolist() == [64, 192]


def test_large_maps_are_averaged_in_blocks_whose_last_ones_repeat_the_edge():
    levels = np.broadcast_to(np.array([0, 30, 60, 90, 120], np.float32), (2, 5))
    tiles = quantize_channels(tf.constant(levels)[None, :, :, None], shrink=3).numpy()[0, :, :, 0]
    means = np.array([[(0 + 30 + 60) / 3, (90 + 120 + 120) / 3]])
    np.testing.assert_array_equal(tiles, np.rint(means * 253 / 255))


@pytest.mark.parametrize(
    ("values", "is_inactive"),
    [
        ([0, 0], True),
        ([-1, -2], False),
        ([-1, 0], False),
        ([3, 3], True),
        ([-3, -3], True),
        ([0], True),
        ([3], False),
        ([-3], False),
        ([np.nan], True),
        ([0, 1], False),
        ([-1, 1], False),
        ([np.nan, 1], True),
    ],
)
def test_a_channel_is_inactive_if_it_is_constant_or_a_single_zero(values, is_inactive):
    channel = tf.constant([[values]], tf.float32)[..., None]
    assert find_inactive_channels(channel).numpy().tolist() == [[is_inactive]]


def test_maps_of_one_pixel_are_standardized_over_the_channels():
    layers = [L.GlobalAveragePooling2D(keepdims=True, name="p"), L.Flatten(), L.Dense(2)]
    network = Network(keras.Sequential([L.Input((1, 2, 4)), *layers]))
    image = np.array([[[[0, 2, 10, 12], [0, 2, 10, 12]]]], np.uint8)
    outputs = compute_activations(network, image)["p"]
    assert outputs.is_inactive.tolist() == [[True, False, False, False]]
    expected = standardize_vector(np.array([0.0, 2.0, 10.0, 12.0]))
    np.testing.assert_allclose(outputs.tiles[0, 0, 0], expected * (253 / 255), atol=1)


def test_negative_values_do_not_lower_the_mean_activation():
    model = keras.Sequential([L.Input((1, 2, 1)), L.Conv2D(1, 1, name="c"), L.Flatten(), L.Dense(2)])
    model.get_layer("c").set_weights([np.ones((1, 1, 1, 1)), np.array([-50.0])])
    outputs = compute_activations(Network(model), np.array([[[[10], [70]]]], np.uint8))["c"]
    assert outputs.mean_activation.tolist() == [[10.0]]
    assert outputs.sparsity.tolist() == [0.0]


def test_the_summary_of_a_layer_is_over_the_first_images():
    layer = LayerInfo("a", "Conv2D", (1, 2, 2), None)
    is_inactive = np.array([[1, 1], [1, 0], [0, 0]])
    outputs = FeatureMapOutputs(None, None, is_inactive, np.array([1.0, 0.5, 0.0]))
    summary = summarize_layer(layer, outputs, 2)
    assert (summary["layer"], summary["kind"], summary["shape"]) == ("a", "Conv2D", [1, 2, 2])
    assert list(summary.values())[3:] == [0.75, 0.75]


def test_vectors_have_no_inactive_channels():
    vectors = VectorOutputs(np.array([[0.0, 1.0]]), np.array([0.5]))
    summary = summarize_layer(LayerInfo("d", "Dense", (2,), None), vectors, 1)
    assert list(summary.values())[3:] == [None, 0.5]
