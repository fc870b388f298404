"""Receptive fields against the gradient of a network: the pixels that a position really depends on."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from service.report.analysis.network import Network
from service.report.analysis.receptive_field import ReceptiveField, compute_receptive_fields

L = keras.layers
SHAPE = (23, 20, 1)


def build_network(*layers: keras.Layer) -> Network:
    return Network(keras.Sequential([L.Input(SHAPE), *layers, L.GlobalAveragePooling2D(), L.Dense(2)]))


def find_window(network: Network, name: str, row: int, column: int) -> tuple[int, int, int, int]:
    """Finds the pixels with a gradient at one position; all weights must be positive."""
    images = tf.random.stateless_uniform((1, *network.shape), (1, 2), 100.0, 150.0)
    with tf.GradientTape() as tape:
        tape.watch(images)
        layer = network.find_layer(name)
        output = layer.arrange(network.run(images, stop_after=name).outputs[name])
        value = tf.reduce_sum(output[0, row, column])
    gradient = np.abs(tape.gradient(value, images).numpy()[0]).sum(axis=-1)
    rows = np.flatnonzero(gradient.any(axis=1))
    columns = np.flatnonzero(gradient.any(axis=0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def clip(window: tuple[int, int, int, int], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    top, left, bottom, right = window
    return max(top, 0), max(left, 0), min(bottom, shape[0]), min(right, shape[1])


def make_positive(network: Network) -> None:
    for layer in network.model.layers:
        layer.set_weights([np.abs(weight) + 0.1 for weight in layer.get_weights()])


CHAINS = {
    "valid": [L.Conv2D(2, 3), L.Conv2D(2, (5, 2))],
    "same": [L.Conv2D(2, 4, padding="same"), L.Conv2D(2, 3, padding="same")],
    "stride 2": [L.Conv2D(2, 3, strides=2, padding="same"), L.Conv2D(2, 3, strides=2)],
    "even kernel, stride 2, same": [L.Conv2D(2, 2, strides=(2, 3), padding="same")],
    "dilated": [L.Conv2D(2, 3, dilation_rate=2, padding="same"), L.DepthwiseConv2D(3)],
    "average pooling": [L.Conv2D(2, 3), L.AveragePooling2D(3, 2, "same"), L.SeparableConv2D(2, 3)],
    "padded and cropped": [L.ZeroPadding2D(((2, 1), (0, 3))), L.Conv2D(2, 3), L.Cropping2D(((1, 0), (2, 1)))],
    "upsampled": [L.AveragePooling2D(2), L.UpSampling2D(2), L.Conv2D(2, 3)],
    "transposed, same": [L.Conv2D(2, 3, strides=2), L.Conv2DTranspose(2, 4, strides=2, padding="same")],
    "transposed, valid": [L.Conv2D(2, 3, strides=2), L.Conv2DTranspose(2, 3, strides=2)],
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_field_of_a_position_holds_the_pixels_with_a_gradient(name):
    network = build_network(*CHAINS[name])
    make_positive(network)
    fields = compute_receptive_fields(network)
    layer = [layer for layer in network.layers if layer.is_feature_map][-1]
    field = fields[layer.name]
    assert not field.is_global
    height, width, _ = layer.shape
    is_exact = not name.startswith(("upsampled", "transposed"))  # there, fields differ from place to place
    for row, column in ((0, 0), (height // 2, width // 2), (height - 1, width - 1)):
        found = clip(field.window(row, column), SHAPE)
        expected = find_window(network, layer.name, row, column)
        margins = np.subtract(expected, found) * (1, 1, -1, -1)
        assert (margins == 0).all() if is_exact else (margins >= 0).all() and margins.max() <= 3, (
            row,
            column,
            found,
            expected,
        )


def test_a_sum_has_the_field_of_its_longer_path_and_a_gate_is_reported():
    image = keras.Input(SHAPE)
    x = L.Conv2D(2, 3, padding="same", name="first")(image)
    long = L.Conv2D(2, 5, padding="same", name="long")(x)
    x = L.Add(name="sum")([x, long])
    gate = L.Dense(2, activation="sigmoid")(L.GlobalAveragePooling2D(keepdims=True)(x))
    x = L.Multiply(name="gated")([x, gate])
    flat = L.Flatten()(L.Conv2D(2, 3, name="last")(x))
    fields = compute_receptive_fields(Network(keras.Model(image, L.Dense(2)(flat))))
    assert fields["sum"] == fields["long"] == ReceptiveField((7, 7), (1, 1), (-3, -3))
    assert fields["gated"] == ReceptiveField((7, 7), (1, 1), (-3, -3), is_global=True)
    assert fields["last"].window(2, 1) == (-1, -2, 8, 7)
    assert fields["last"].is_global


def test_tokens_have_the_field_of_their_patch_and_attention_is_global():
    image = keras.Input((8, 12, 1))
    x = L.Conv2D(6, 4, strides=4, name="patches")(image)
    x = L.Reshape((6, 6))(x)
    x = L.LayerNormalization(name="norm")(x)
    attended = L.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = L.Add(name="sum")([x, attended])
    model = keras.Model(image, L.Dense(2)(L.GlobalAveragePooling1D()(x)))
    fields = compute_receptive_fields(Network(model))
    assert fields["norm"] == ReceptiveField((4, 4), (4, 4), (0, 0))
    assert fields["sum"] == ReceptiveField((4, 4), (4, 4), (0, 0), is_global=True)
    assert fields["sum"].window(1, 2) == (4, 8, 8, 12)


def test_layers_of_nested_models_are_found_by_their_path():
    inner = keras.Sequential([L.Input(SHAPE), L.Conv2D(2, 3, strides=2, name="c")], name="base")
    model = keras.Sequential([L.Input(SHAPE), inner, L.GlobalAveragePooling2D(), L.Dense(2)])
    assert compute_receptive_fields(Network(model)) == {"base/c": ReceptiveField((3, 3), (2, 2), (0, 0))}


def test_an_unknown_layer_that_changes_the_grid_divides_the_image():
    class Stem(L.Layer):
        def call(self, x):
            return x[:, ::4, ::5]

    field = compute_receptive_fields(build_network(Stem(name="stem")))["stem"]
    assert field == ReceptiveField((23 / 6, 5), (23 / 6, 5), (0, 0), is_global=True)


@pytest.mark.parametrize(
    ("name", "layer", "size", "stride"),
    [("MobileNet", "conv_pw_13_relu", 315, 32), ("VGG16", "block5_pool", 212, 32)],
)
def test_published_sizes(name, layer, size, stride):
    """The sizes are those of Araujo, Norris and Sim (2019), table 1."""
    model = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(224, 224, 3))
    logits = L.Dense(2)(L.GlobalAveragePooling2D()(model.output))
    field = compute_receptive_fields(Network(keras.Model(model.input, logits), head="logits"))[layer]
    assert (field.size, field.stride) == ((size, size), (stride, stride))
