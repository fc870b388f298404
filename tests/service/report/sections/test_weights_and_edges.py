"""Weights in colours symmetric about zero, and the demonstration of what a filter does."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from service.report.analysis.examples import ReportExample
from service.report.analysis.network import Network
from service.report.drawing.colours import DIVERGING, FRAME_INDEX, ZERO_INDEX, quantize_signed
from service.report.drawing.sheets import TileScaling
from service.report.sections import edges, weights
from service.report.sections.provenance import Provenance

L = keras.layers


def test_colours_are_symmetric_about_zero():
    assert quantize_signed(np.array([-2.0, -1.0, 0.0, 1.0, 2.0, 9.0, -9.0]), 2.0).tolist() == [
        0,
        63,
        126,
        189,
        252,
        252,
        0,
    ]
    assert DIVERGING[ZERO_INDEX].tolist() == [247, 247, 247]
    blue = DIVERGING[0]
    red = DIVERGING[252]
    assert blue[2] > blue[0]
    assert red[0] > red[2]
    assert weights.find_limit(np.array([-3.0, 2.0])) == 3
    assert weights.find_limit(np.zeros(2)) == 1


def test_first_filters_are_laid_out_in_order_separately_for_each_colour():
    kernel = np.arange(3 * 2 * 3 * 20, dtype=np.float32).reshape(3, 2, 3, 20) - 180
    model = keras.Sequential(
        [L.Input((6, 6, 3)), L.Conv2D(20, (3, 2), use_bias=False, name="c"), L.Flatten(), L.Dense(2)]
    )
    model.get_layer("c").set_weights([kernel])
    red, green, blue = weights.draw_filters(Network(model))
    assert [weight_map.title for weight_map in (red, green, blue)] == ["red", "green", "blue"]
    assert red.limit == blue.limit == 180
    for n, weight_map in enumerate((red, green, blue)):
        for number in (0, 1, 15, 16, 19):
            # tiles of 33 x 22 pixels with a frame of one pixel
            top = number // 16 * 34
            left = number % 16 * 23
            tile = np.kron(quantize_signed(kernel[:, :, n, number], 180), np.ones((11, 11), np.uint8))
            np.testing.assert_array_equal(weight_map.indices[top : top + 33, left : left + 22], tile)
    assert (red.indices[34:, 4 * 23 :] == FRAME_INDEX).all()


def test_dense_weights_on_pixels_are_pictures_and_others_matrices():
    kernel = np.arange(12 * 2, dtype=np.float32).reshape(12, 2) - 5
    network = Network(
        keras.Sequential([L.Input((3, 4, 1)), L.Flatten(), L.Dense(2, name="one"), L.Dense(3, name="two")])
    )
    network.model.get_layer("one").set_weights([kernel, np.zeros(2)])
    network.model.get_layer("two").set_weights([np.array([[1, 0, -2], [0, 0, 4]]), np.zeros(3)])
    one, two = weights.draw_dense(network)
    np.testing.assert_array_equal(one.indices[:24:8, :32:8], quantize_signed(kernel[:, 0].reshape(3, 4), 18))
    np.testing.assert_array_equal(
        one.indices[:24:8, 33:65:8], quantize_signed(kernel[:, 1].reshape(3, 4), 18)
    )
    grow = weights.SMALLEST // 3
    assert two.indices.shape == (3 * grow, weights.LARGEST)
    np.testing.assert_array_equal(
        two.indices[::grow, :: weights.LARGEST // 2], quantize_signed(np.array([[1, 0], [0, 0], [-2, 4]]), 4)
    )


def test_shrinking_keeps_the_strongest_weight_and_its_sign():
    matrix = np.array([[1.0, -3.0, 0.5, 0.0, 2.0], [0.0, 2.0, 0.0, -0.1, -5.0]])
    assert weights.shrink(matrix, 3).tolist() == [[-3, 0.5, 2], [2, -0.1, -5]]
    assert weights.shrink(matrix.T, 3).tolist() == [[-3, 2], [0.5, -0.1], [2, -5]]
    assert weights.shrink(matrix, 1).tolist() == [[-5]]
    assert weights.shrink(matrix, 9) is matrix


def test_tiles_share_one_scale():
    found = weights.draw_tiles(np.array([[[1.0]], [[-4.0]]]), 4.0, TileScaling(1, 2, 1))
    assert found.shape == (3, 6)
    assert found[0, 0] == 158
    assert found[0, 3] == 0


def test_a_convolution_by_hand_is_that_of_a_network():
    image = np.random.default_rng(0).normal(size=(7, 9))
    kernel = np.arange(9.0).reshape(3, 3)
    network = tf.nn.conv2d(image[None, ..., None], kernel[..., None, None], 1, "VALID").numpy()[0, ..., 0]
    np.testing.assert_allclose(edges.convolve(image, kernel), network, rtol=1e-9)


@pytest.mark.parametrize(("name", "axis"), [("vertical edges", 1), ("horizontal edges", 0)])
def test_edge_filters_find_their_edges_and_no_others(name, axis):
    step = np.zeros((6, 6))
    step[(slice(None), slice(3, None)) if axis == 1 else (slice(3, None), slice(None))] = (
        10  # dark, then bright
    )
    found = edges.convolve(step, np.array(edges.KERNELS[name]))
    assert found.max() == 40
    assert found.min() == 0  # from dark to bright is positive
    other = next(n for n in ("vertical edges", "horizontal edges") if n != name)
    assert not edges.convolve(step, np.array(edges.KERNELS[other])).any()


def test_greyscale_weights_colours_by_luminance():
    assert edges.to_grey(np.array([[[255, 0, 0], [0, 255, 0], [10, 10, 10]]], np.uint8)).tolist() == [
        [pytest.approx(76.245), pytest.approx(149.685), 10]
    ]
    assert edges.to_grey(np.array([[[7]]], np.uint8)).tolist() == [[7]]


def test_an_image_smaller_than_the_filters_is_not_shown():
    provenance = Provenance("model-digest", "shards-digest", 1.0, "validation")
    pixel = ReportExample(0, np.zeros((1, 1, 1), np.uint8), 0, 0, 1.0, np.array([0]), "validation image 0, a")
    assert edges.build_section(None, provenance, ()) is None
    assert edges.build_section(None, provenance, (pixel,)) is None


def test_the_title_of_a_shrunk_matrix_says_what_a_pixel_is():
    drawn = weights._draw_matrix("dense", np.ones((8192, 600), np.float32))
    assert drawn.indices.shape == (300, 512)
    assert drawn.title.endswith("8,192 inputs (columns); a pixel is the strongest of 32 weights")
    assert "pixel" not in weights._draw_matrix("dense", np.ones((512, 10), np.float32)).title
