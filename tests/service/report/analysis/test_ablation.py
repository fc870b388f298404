"""Ablation against networks whose channels are known, and against setting weights to zero by hand."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from service.report.analysis import ablation
from service.report.analysis.ablation import Ablation, compute_ablation, find_head
from service.report.analysis.network import Network
from service.report.analysis.top_crops import scan_images

L = keras.layers


class Photos:
    """Images in memory, as a split."""

    split = "validation"

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        self.pixels = pixels
        self.labels = labels

    def read(self, rows):
        return self.pixels[list(rows)]


def ablate(model: keras.Model, photos: Photos) -> tuple[Ablation | None, Network]:
    network = Network(model, head="logits")
    head = find_head(network)
    assert head is not None
    rows = np.arange(len(photos.labels))
    features = scan_images(network, photos, rows, {}, head.stored).features
    probabilities = tf.nn.softmax(network.run(photos.pixels).logits).numpy()
    return compute_ablation(network, head, features, photos.labels, probabilities), network


def colour_photos() -> Photos:
    """Four images per class: class k is bright in colour k."""
    pixels = np.full((12, 4, 4, 3), 20, np.uint8)
    labels = np.repeat(np.arange(3), 4)
    pixels[np.arange(12), :, :, labels] = 200
    return Photos(pixels, labels)


def test_each_class_loses_its_own_channel():
    """Channel 2 carries class 0, channel 0 class 1, channel 3 class 2, and channel 1 nothing."""
    model = keras.Sequential(
        [
            L.Input((4, 4, 3)),
            L.Conv2D(4, 1, activation="relu", name="c"),
            L.GlobalAveragePooling2D(),
            L.Dense(3),
        ]
    )
    kernel = np.zeros((1, 1, 3, 4), np.float32)
    weights = np.zeros((4, 3), np.float32)
    for label, channel in enumerate((2, 0, 3)):
        kernel[0, 0, label, channel] = 1
        weights[channel, label] = 1
    model.set_weights([kernel, np.zeros(4), weights, np.array([0.0, 0.0, 0.0])])
    result, _ = ablate(model, colour_photos())
    assert result.layer == "c"
    assert result.channels.tolist() == [0, 1, 2, 3]
    assert result.accuracy.tolist() == [1, 1, 1]
    expected = np.zeros((4, 3))
    expected[2, 0] = expected[0, 1] = expected[3, 2] = -1
    np.testing.assert_array_equal(result.change, expected)
    np.testing.assert_allclose(result.mean_without, [2 / 3, 1, 2 / 3, 2 / 3])


def test_a_channel_of_zeros_is_not_zero_after_normalization():
    """The normalization adds 300 to the channel: class 0 has 300 without it and at most 500 with it."""
    model = keras.Sequential(
        [
            L.Input((4, 4, 3)),
            L.Conv2D(1, 1, name="c"),
            L.GlobalAveragePooling2D(),
            L.BatchNormalization(epsilon=0),
            L.Dense(2),
        ]
    )
    model.set_weights(
        [
            *(np.ones((1, 1, 3, 1)) / 3, np.zeros(1)),  # the brightness of the image
            *(np.ones(1), np.full(1, 300), np.zeros(1), np.ones(1)),  # gamma, beta, mean, variance
            *(np.array([[1.0, 0.0]]), np.array([0.0, 250.0])),
        ]
    )
    photos = colour_photos()
    result, network = ablate(model, Photos(photos.pixels, np.zeros(12, int)))
    assert find_head(network).first is not None
    assert result.accuracy[0] == 1
    assert result.change[0, 0] == 0


def build_tail(name: str) -> list[keras.Layer]:
    return {
        "flat": [
            L.Conv2D(5, 3, activation="relu"),
            L.MaxPooling2D(2),
            L.Flatten(),
            L.Dense(6, activation="relu"),
        ],
        "normalized": [L.Conv2D(5, 3), L.BatchNormalization(), L.ReLU(), L.GlobalAveragePooling2D()],
        "pointwise": [L.Conv2D(5, 3), L.GlobalAveragePooling2D(keepdims=True), L.Conv2D(4, 1), L.Flatten()],
        "mixed": [
            L.Conv2D(5, 3),
            L.GlobalAveragePooling2D(keepdims=True),
            L.LayerNormalization(),
            L.Flatten(),
        ],
    }[name]


@pytest.mark.parametrize(
    ("name", "is_linear"), [("flat", True), ("normalized", True), ("pointwise", True), ("mixed", False)]
)
def test_ablation_equals_a_mask_in_the_model(name, is_linear):
    keras.utils.set_random_seed(3)
    tail = build_tail(name)
    model = keras.Sequential([L.Input((8, 7, 3)), *tail, L.Dense(3)])
    for layer in model.layers:
        layer.set_weights(
            [weight + np.random.default_rng(1).normal(0, 0.3, weight.shape) for weight in layer.get_weights()]
        )
        if isinstance(layer, L.BatchNormalization):
            layer.set_weights([np.abs(weight) for weight in layer.get_weights()])
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 7, 3)).astype(np.uint8)
    labels = np.random.default_rng(1).integers(0, 3, 40)
    result, network = ablate(model, Photos(pixels, labels))
    head = find_head(network)
    assert (head.first is not None) == is_linear
    position = [layer.name for layer in model.layers].index(head.layer.name)
    for channel in range(5):
        x = pixels.astype(np.float32)
        for layer in model.layers[: position + 1]:
            x = layer(x)
        x = np.array(x)
        x[..., channel] = 0
        for layer in model.layers[position + 1 :]:
            x = layer(x)
        is_correct = np.array(x).argmax(axis=1) == labels
        expected = [is_correct[labels == label].mean() for label in range(3)]
        np.testing.assert_allclose(result.without[channel], expected)
        assert result.mean_without[channel] == pytest.approx(is_correct.mean())


def test_a_layer_that_is_bypassed_has_no_ablation():
    """The logits see the image through a second path, which the head alone does not have."""
    image = keras.Input((6, 6, 3))
    small = L.Rescaling(1 / 255)(image)
    x = L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(small))
    bypass = L.GlobalMaxPooling2D()(small)
    model = keras.Model(image, L.Dense(3)(L.Concatenate()([bypass, x])))
    photos = Photos(
        np.random.default_rng(0).integers(0, 256, (9, 6, 6, 3)).astype(np.uint8), np.arange(9) % 3
    )
    assert ablate(model, photos)[0] is None


@pytest.mark.parametrize(
    ("pairs", "channels", "images"),
    [(10_000, [0, 1, 2, 3], 600), (800, [0, 1, 2, 3], 200), (200, [1, 3], 100), (20, [1, 3], 90)],
)
def test_large_heads_have_fewer_images_then_only_strong_channels(monkeypatch, pairs, channels, images):
    """A channel of this head costs 24 multiply-adds: 12 of the 48 first weights, and the 12 others."""
    monkeypatch.setattr(ablation, "BUDGET", pairs * 24)
    monkeypatch.setattr(ablation, "BUDGET_SHARE", 0)
    monkeypatch.setattr(ablation, "OUTPUT_COST", 0)
    monkeypatch.setattr(ablation, "FEWEST_CHANNELS", 2)
    monkeypatch.setattr(ablation, "FEWEST_IMAGES", 90)
    model = keras.Sequential(
        [L.Input((2, 2, 3)), L.Conv2D(4, 1), L.Flatten(), L.Dense(3, use_bias=False), L.Dense(3)]
    )
    kernel = np.zeros((1, 1, 3, 4), np.float32)
    kernel[0, 0, 0] = [1, 3, 0, -2]
    model.layers[0].set_weights([kernel, np.zeros(4)])
    pixels = np.random.default_rng(0).integers(1, 256, (600, 2, 2, 3)).astype(np.uint8)
    result, _ = ablate(model, Photos(pixels, np.arange(600) % 2))
    assert result.channels.tolist() == channels
    assert result.images == images
    assert np.isnan(result.accuracy[2])  # no image is of class 2
    assert np.isnan(result.without[:, 2]).all()
