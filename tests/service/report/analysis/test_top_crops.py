"""Top crops: the position is known to the pixel, and only one crop per image is taken."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest

from service.report.analysis.network import LayerInfo, Network
from service.report.analysis.receptive_field import ReceptiveField, compute_receptive_fields
from service.report.analysis.top_crops import (
    PADDING,
    CropPlace,
    TopTracker,
    cut_crop,
    place_crop,
    scan_images,
    select_rows,
)

L = keras.layers


class Photos:
    """Images in memory, as a split."""

    split = "validation"

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.labels = np.zeros(len(pixels), np.int32)

    def read(self, rows):
        return self.pixels[list(rows)]


@pytest.mark.parametrize(
    ("padding", "strides", "spot"),
    [("valid", 1, (6, 9)), ("same", 1, (0, 13)), ("valid", 2, (5, 8)), ("same", 2, (10, 2))],
)
def test_the_crop_is_that_of_the_strongest_position(padding, strides, spot):
    """The filter matches a pattern that each image holds at one place; the crop shows exactly that place."""
    generator = np.random.default_rng(0)
    pattern = np.array([[250, 0, 90], [10, 200, 30], [60, 120, 255]], np.uint8)
    pixels = np.full((5, 12, 15, 1), 40, np.uint8)
    pixels += generator.integers(0, 8, pixels.shape).astype(np.uint8)
    # The corner of the pattern is where the window of an output begins, whatever the padding.
    row, column = (spot[0] // strides * strides, spot[1] // strides * strides)
    network = Network(
        keras.Sequential(
            [
                L.Input((12, 15, 1)),
                L.Conv2D(2, 3, strides=strides, padding=padding, name="c"),
                L.GlobalAveragePooling2D(),
                L.Dense(2),
            ]
        )
    )
    field = compute_receptive_fields(network)["c"]
    top, left, bottom, right = field.window(row // strides, column // strides)
    padded = np.full((12 + 6, 15 + 6), PADDING, np.uint8)
    for number in range(5):
        image = np.pad(pixels[number, ..., 0], 3)
        image[top + 3 : bottom + 3, left + 3 : right + 3] = pattern
        pixels[number, ..., 0] = image[3:-3, 3:-3]
    kernel = np.zeros((3, 3, 1, 2), np.float32)
    kernel[..., 0, 1] = (pattern / 255 - pattern.mean() / 255) / 10
    network.model.get_layer("c").set_weights([kernel, np.zeros(2)])
    top_positions = scan_images(network, Photos(pixels), np.arange(5), {"c": 2}).tops["c"]
    assert top_positions.positions[1].tolist() == [[row // strides, column // strides]] * 5
    assert sorted(top_positions.rows[1].tolist()) == [0, 1, 2, 3, 4]
    layer = network.find_layer("c")
    window = place_crop(layer, field, top_positions.positions[1, 0], (12, 15)).window
    crop = cut_crop(pixels[0], window)[..., 0]
    padded[3:-3, 3:-3] = pixels[0, ..., 0]
    expected = padded[top + 3 : bottom + 3, left + 3 : right + 3]
    np.testing.assert_array_equal(crop, expected)
    inside = expected != PADDING
    np.testing.assert_array_equal(crop[inside], pattern[inside])


def test_rows_and_columns_are_not_exchanged():
    """One bright pixel in row 2, column 7 of a wide image."""
    pixels = np.zeros((1, 6, 10, 3), np.uint8)
    pixels[0, 2, 7] = 255
    network = Network(
        keras.Sequential(
            [L.Input((6, 10, 3)), L.Conv2D(1, 1, name="c"), L.GlobalAveragePooling2D(), L.Dense(2)]
        )
    )
    network.model.get_layer("c").set_weights([np.ones((1, 1, 3, 1)), np.zeros(1)])
    found = scan_images(network, Photos(pixels), np.arange(1), {"c": 1}).tops["c"]
    assert found.positions.tolist() == [[[2, 7]]]
    assert found.activations.tolist() == [[765]]


def test_the_strongest_of_all_batches_are_kept_in_order_and_once_per_image():
    tracker = TopTracker(2, count=3)
    generator = np.random.default_rng(0)
    activations = generator.integers(0, 12, (40, 2)).astype(np.float32)  # with many equal values
    positions = generator.integers(0, 99, (40, 2, 2))
    for start in range(0, 40, 7):
        part = slice(start, start + 7)
        tracker.update(activations[part], np.arange(40)[part], positions[part])
    for index in range(2):
        order = sorted(range(40), key=lambda row: (-activations[row, index], row))[:3]
        assert tracker.top.rows[index].tolist() == order
        assert tracker.top.activations[index].tolist() == activations[order, index].tolist()
        assert tracker.top.positions[index].tolist() == positions[order, index].tolist()


def test_images_that_a_channel_does_not_distinguish_have_no_crop():
    """Image 1 is black: the channel is zero everywhere, and no position is the strongest."""
    pixels = np.zeros((2, 4, 4, 1), np.uint8)
    pixels[0, 1, 2] = 9
    network = Network(
        keras.Sequential(
            [L.Input((4, 4, 1)), L.Conv2D(1, 1, activation="relu", name="c"), L.Flatten(), L.Dense(2)]
        )
    )
    network.model.get_layer("c").set_weights([np.ones((1, 1, 1, 1)), np.zeros(1)])
    found = scan_images(network, Photos(pixels), np.arange(2), {"c": 1}).tops["c"]
    assert found.count(0) == 1
    assert found.rows[0, 0] == 0


def test_positions_of_tokens_are_those_of_their_patches():
    image = keras.Input((8, 12, 1))
    x = L.Conv2D(3, 4, strides=4, name="patches")(image)
    x = L.LayerNormalization(epsilon=1.0, name="norm")(L.Reshape((6, 3))(x))
    network = Network(keras.Model(image, L.Dense(2)(L.GlobalAveragePooling1D()(x))))
    kernel = np.zeros((4, 4, 1, 3), np.float32)
    kernel[..., 0] = 1
    network.model.get_layer("patches").set_weights([kernel, np.zeros(3)])
    pixels = np.zeros((1, 8, 12, 1), np.uint8)
    pixels[0, 4:, 8:] = 100
    found = scan_images(network, Photos(pixels), np.arange(1), {"norm": 1}).tops["norm"]
    assert found.positions.tolist() == [[[1, 2]]]
    fields = compute_receptive_fields(network)
    position = found.positions[0, 0]
    place = place_crop(network.find_layer("norm"), fields["norm"], position, (8, 12))
    assert place == CropPlace((4, 8, 8, 12))
    mixed = replace(fields["norm"], is_global=True)  # as after attention
    place = place_crop(network.find_layer("norm"), mixed, position, (8, 12))
    assert place == CropPlace((0, 0, 8, 12), (0.75, pytest.approx(10 / 12)))


def test_a_field_larger_than_the_image_shows_all_of_it_and_marks_the_position():
    field = ReceptiveField((50, 4), (8, 2), (-21, -1))
    layer = LayerInfo("c", "Conv2D", (3, 14, 1), None)
    place = place_crop(layer, field, (1, 2), (20, 30))
    assert place == CropPlace((0, 3, 20, 7), (0.6, 0.5))
    image = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30, 1)
    np.testing.assert_array_equal(cut_crop(image, place.window), image[:, 3:7])


def test_features_of_few_images_are_those_of_their_rows():
    pixels = np.arange(70, dtype=np.uint8).reshape(70, 1, 1, 1)
    network = Network(keras.Sequential([L.Input((1, 1, 1)), L.Flatten(name="f"), L.Dense(2)]))
    scan = scan_images(network, Photos(pixels), np.arange(0, 70, 2), {}, "f", feature_images=3)
    assert scan.feature_rows.tolist() == [0, 34, 68]
    assert scan.features.tolist() == [[0], [34], [68]]


def test_rows_are_spread_over_a_large_split():
    photos = Photos(np.zeros((10, 1, 1, 1), np.uint8))
    assert select_rows(photos, 4).tolist() == [0, 3, 6, 9]
    assert select_rows(photos, 99).tolist() == list(range(10))
    assert select_rows(photos, 0).tolist() == []
