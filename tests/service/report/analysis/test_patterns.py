"""Filter patterns: linear filters whose best image is known, the published loop's own pictures, and dead filters."""

from __future__ import annotations

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from service.report.analysis.network import Network
from service.report.analysis.patterns import BATCH, compute_filter_patterns, deprocess_patterns
from service.report.drawing.album import Album
from service.report.drawing.colours import INACTIVE
from service.report.options import ReportOptions
from service.report.sections import filters as page_filters
from service.report.subject import Subject

L = keras.layers


def network(*layers: keras.Layer, shape: tuple[int, int, int] = (6, 8, 3), scale: float = 1.0) -> Network:
    return Network(keras.Sequential([L.Input(shape), *layers, L.GlobalAveragePooling2D(), L.Dense(2)]), scale)


def test_a_linear_filter_is_climbed_along_its_own_kernel():
    """For a 1x1 filter the gradient is its kernel everywhere: every step adds the kernel over its root mean square."""
    kernel = np.array([[3.0, 0.0], [4.0, 0.0], [0.0, -2.0]], np.float32).reshape(1, 1, 3, 2)
    made = network(L.Conv2D(2, 1, name="c", use_bias=False))
    made.model.get_layer("c").set_weights([kernel])
    found = compute_filter_patterns(made, "c", [1, 0], steps=5, seed=3)
    noise = np.random.default_rng(3).uniform(118, 138, (1, 6, 8, 3))
    for image, number in zip(found.images, (1, 0), strict=True):
        direction = kernel[0, 0, :, number] / np.sqrt((kernel[0, 0, :, number] ** 2).mean())
        np.testing.assert_allclose(image - noise[0], np.broadcast_to(5 * direction, (6, 8, 3)), atol=1e-4)
    np.testing.assert_allclose(
        found.initial_activation, [(noise[0] @ kernel[0, 0, :, n]).mean() for n in (1, 0)], rtol=1e-5
    )
    np.testing.assert_allclose(
        found.final_activation,
        [(i @ kernel[0, 0, :, n]).mean() for i, n in zip(found.images, (1, 0), strict=True)],
        rtol=1e-5,
    )
    assert not found.is_unresponsive.any()


def published(model: keras.Model, layer: str, number: int, steps: int, noise: np.ndarray) -> np.ndarray:
    """The published way, one filter after the other, through a model of its own."""
    inner = keras.Model(model.inputs, model.get_layer(layer).output)
    image = tf.Variable(noise)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(inner(image)[..., number])
        gradient = tape.gradient(loss, image)
        image.assign_add(gradient / tf.sqrt(tf.reduce_mean(tf.square(gradient))))
    return image.numpy()[0]


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_pictures_equal_those_of_the_published_loop(padding):
    keras.utils.set_random_seed(5)
    deep = L.Conv2D(BATCH + 3, 3, strides=2, padding=padding, activation="relu", name="deep")
    made = network(L.Conv2D(5, 3, activation="elu"), L.MaxPooling2D(), deep, shape=(16, 18, 3))
    noise = np.random.default_rng(0).uniform(118, 138, (1, 16, 18, 3)).astype(np.float32)
    chosen = [BATCH + 2, *range(BATCH)]
    found = compute_filter_patterns(made, "deep", chosen, steps=4)
    compared = 0
    for place, number in enumerate(chosen):
        if found.initial_activation[place] > 0:  # the published loop stays with the noise where a filter is silent there
            np.testing.assert_allclose(
                found.images[place], published(made.model, "deep", number, 4, noise), atol=5e-4
            )
            assert found.final_activation[place] > found.initial_activation[place]
            compared += 1
    assert compared >= 5


def test_a_dead_filter_stays_noise_and_a_silent_one_is_woken():
    kernel, bias = np.zeros((1, 1, 3, 3), np.float32), np.array([0.0, -1.0, -130.0], np.float32)
    kernel[..., 0, 0], kernel[..., 1, 2] = 1, 1  # answers red; nothing; green, but only above 130
    made = network(L.Conv2D(3, 1, activation="relu", name="c"))
    made.model.get_layer("c").set_weights([kernel, bias])
    noise = np.random.default_rng(0).uniform(118, 128, (1, 6, 8, 3)).astype(np.float32)
    found = compute_filter_patterns(made, "c", [0, 1, 2], seed=0)
    assert found.is_unresponsive.tolist() == [False, True, False]
    assert found.initial_activation[1] == found.final_activation[1] == 0
    bias[2] = -150
    made.model.get_layer("c").set_weights([kernel, bias])
    woken = compute_filter_patterns(made, "c", [2], seed=0)
    assert woken.initial_activation[0] == 0 < woken.final_activation[0]
    assert noise.shape == woken.images.shape


def test_the_scale_of_a_model_does_not_change_its_patterns():
    keras.utils.set_random_seed(1)
    plain = network(L.Conv2D(2, 3, name="c", use_bias=False), scale=1.0)
    scaled = Network(plain.model, 1 / 255)
    np.testing.assert_allclose(
        compute_filter_patterns(plain, "c", [0, 1]).images, compute_filter_patterns(scaled, "c", [0, 1]).images, atol=1e-3
    )


def test_patterns_as_pixels():
    image = np.array([[[[0.0], [2.0]]], [[[5.0], [5.0]]]])
    assert deprocess_patterns(image)[..., 0].tolist() == [[[64, 192]], [[128, 128]]]
    assert deprocess_patterns(image).dtype == np.uint8


def test_layers_and_sizes_that_are_shown():
    made = network(*[L.Conv2D(2, 1, name=f"c{n}") for n in range(12)], shape=(256, 128, 3))
    assert [tap.name for tap in page_filters.chosen_layers(made)] == [
        "c0",
        "c2",
        "c3",
        "c5",
        "c6",
        "c8",
        "c9",
        "c11",
    ]
    assert page_filters.choose_pattern_size(made, "c3") == (128, 64)
    assert compute_filter_patterns(made, "c3", [0], steps=1, size=(128, 64)).images.shape == (1, 128, 64, 3)
    tied = network(L.Flatten(), L.Reshape((256, 128, 3)), L.Conv2D(2, 1, name="c"), shape=(256, 128, 3))
    assert page_filters.choose_pattern_size(tied, "c") == (256, 128)


class Image:
    """One image, black but for its red."""

    split, labels = "validation", np.array([0], np.int32)

    def read(self, rows):
        return np.broadcast_to(np.array([200, 0, 0], np.uint8), (1, 6, 8, 3))

    def read_bboxes(self, rows):
        return [None]

    def batches(self):
        return [
            {
                "image": self.read([0]),
                "label": self.labels,
                "weight": np.ones(1, np.float32),
                "row": np.arange(1),
            }
        ]


def test_the_section_tells_dead_filters_from_silent_ones(tmp_path):
    """Red less green and blue: noise around grey is far from it, an image that is all red is not."""
    model = network(L.Conv2D(20, 1, activation="relu", name="c")).model
    kernel = np.zeros((1, 1, 3, 20), np.float32)
    kernel[0, 0, 0, 1], kernel[0, 0, 2, 2] = 1, 1
    bias = np.full(20, -1.0)
    bias[1], bias[2] = -195, 0
    model.get_layer("c").set_weights([kernel, bias])
    subject = Subject("tiny", model, "m", "s", ("a", "b"), Image(), Image(), 1.0, ReportOptions(patterns=4))
    section = page_filters.build_section(subject, Album(tmp_path))
    assert section is not None
    (layer,) = section.values["layers"]
    assert [row["state"] for row in layer["table"]] == ["dead", "silent", "answers", "dead"]
    assert section.figures["layers"][0]["dead"] == [0, 3]
    assert layer["picture"].alt.endswith("dead: 0, 3")
    assert layer["sheet"]["blank"] == [0, 1, 3]
    tiles = np.asarray(PIL.Image.open(tmp_path / layer["picture"].file).convert("RGB")).astype(int)
    (width, height), across = layer["sheet"]["tile"], layer["sheet"]["pitch"][0]
    for n in range(4):  # noise that led nowhere is not shown as if it were learned
        tile = tiles[:height, n * across : n * across + width]
        assert (np.abs(tile - INACTIVE).max() <= 4) == (n in layer["sheet"]["blank"])


def test_no_convolutions_no_section(tmp_path):
    dense = keras.Sequential([L.Input((2, 2, 1)), L.Flatten(), L.Dense(2)])
    assert (
        page_filters.build_section(
            Subject("tiny", dense, "m", "s", ("a", "b"), Image(), Image(), 1.0), Album(tmp_path)
        )
        is None
    )
