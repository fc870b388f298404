"""Figures of layers: weights, trainability, types and measured times."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from service.report.analysis.architecture import describe_architecture
from service.report.analysis.layer_times import LayerTimes, measure_layer_times
from service.report.analysis.network import Network

L = keras.layers


def build_model() -> keras.Model:
    """A frozen convolution, normalization, a layer that runs twice, and dropout."""
    inputs = keras.Input((8, 6, 3))
    x = L.Conv2D(4, 3, padding="same", name="frozen", trainable=False)(inputs)  # 3 * 9 * 4 + 4
    x = L.BatchNormalization(name="norm")(x)  # 16, of which 8 are moving statistics
    shared = L.Conv2D(4, 3, padding="same", use_bias=False, name="shared")  # 4 * 9 * 4
    x = L.Dropout(0.5, name="dropout")(shared(shared(x)))
    x = L.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(inputs, L.Dense(2, name="logits")(x))  # 10


def test_weights_are_counted_once_and_by_whether_they_are_trained():
    model = build_model()
    architecture = describe_architecture(Network(model, head="logits"))
    counts = {
        name: (layer.parameters, layer.trainable_parameters) for name, layer in architecture.layers.items()
    }
    assert counts == {
        "frozen": (112, 0),
        "norm": (16, 8),
        "shared": (144, 144),
        "shared:2": (0, 0),
        "dropout": (0, 0),
        "mean": (0, 0),
        "logits": (10, 10),
    }
    assert architecture.parameters == model.count_params() == 282
    assert architecture.trainable_parameters == 162
    assert architecture.multiply_adds == 48 * 108 + 2 * 48 * 144 + 8
    assert architecture.unknown_layers == []


def test_dropout_has_the_field_of_its_input_and_vectors_have_none():
    layers = describe_architecture(Network(build_model(), head="logits")).layers
    assert layers["dropout"].field == layers["shared:2"].field
    assert layers["dropout"].field.size == (7, 7)
    assert layers["mean"].field is None


def test_the_type_of_a_layer_is_that_of_its_output():
    inputs = keras.Input((4, 4, 1))
    x = L.Conv2D(2, 3, dtype="mixed_bfloat16", name="half")(inputs)
    x = L.GlobalAveragePooling2D(dtype="float32", name="mean")(x)
    network = Network(keras.Model(inputs, L.Dense(2, dtype="float32")(x)), head="logits")
    layers = describe_architecture(network).layers
    assert (layers["half"].node.dtype, layers["mean"].node.dtype) == ("bfloat16", "float32")


def test_the_layer_that_computes_most_takes_most_of_the_time():
    inputs = keras.Input((64, 64, 3))
    x = L.Conv2D(128, 1, name="small")(inputs)
    x = L.Conv2D(128, 7, name="large")(x)  # a thousand times the multiply-adds of the others
    x = L.GlobalAveragePooling2D(name="mean")(x)
    network = Network(keras.Model(inputs, L.Dense(2, name="logits")(x)), head="logits")
    times = measure_layer_times(network, np.zeros((10, 64, 64, 3), np.uint8))
    assert (times.images, times.device) == (8, "CPU")
    assert list(times.seconds) == ["small", "large", "mean", "logits"]
    assert times.compute_share("large") > 0.5


def test_shares_are_fractions_of_the_sum():
    times = LayerTimes({"a": 0.003, "b": 0.001}, images=2, device="CPU")
    assert times.compute_share("a") == pytest.approx(0.75)
    assert times.compute_share("b") == pytest.approx(0.25)
