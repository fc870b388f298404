"""Multiply-adds, compared with hand-computed and published numbers and with the profiler of TensorFlow."""

from __future__ import annotations

import keras
import pytest
import tensorflow as tf

from service.report.analysis.multiply_adds import count_multiply_adds
from service.report.analysis.network import Network
from service.report.analysis.operation_graph import trace_graph

L = keras.layers


def count_by_layer(model: keras.Model) -> dict[str, int | None]:
    return {node.name: count_multiply_adds(node) for node in trace_graph(Network(model, head="logits"))}


def build_convolutions() -> keras.Model:
    inputs = keras.Input((20, 16, 4))
    x = L.Conv2D(6, 3, strides=2, padding="same", name="strided")(inputs)  # 10 x 8
    x = L.Conv2D(8, (3, 5), groups=2, padding="same", name="grouped")(x)
    x = L.Conv2D(8, 3, dilation_rate=2, padding="same", name="dilated")(x)
    x = L.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)  # 8 x 6 x 16
    x = L.SeparableConv2D(4, 3, strides=2, padding="same", name="separable")(x)  # 4 x 3
    x = L.Conv2DTranspose(3, 2, strides=2, name="transposed")(x)  # 8 x 6
    x = L.BatchNormalization(name="norm")(x)
    x = L.Dense(7, name="pointwise")(x)
    return keras.Model(inputs, L.Dense(2, name="logits")(L.GlobalAveragePooling2D()(x)))


def test_convolutions_by_hand():
    counts = count_by_layer(build_convolutions())
    assert counts["strided"] == 80 * 9 * 4 * 6
    assert counts["grouped"] == 80 * 15 * 3 * 8
    assert counts["dilated"] == 80 * 9 * 8 * 8
    assert counts["depthwise"] == 48 * 9 * 16
    assert counts["separable"] == 12 * (9 * 16 + 16 * 4)
    assert counts["transposed"] == 12 * 4 * 4 * 3
    assert counts["norm"] == 0
    assert counts["pointwise"] == 48 * 3 * 7
    assert counts["logits"] == 7 * 2


def test_the_profiler_of_tensorflow_counts_the_same():
    inputs = keras.Input((20, 16, 4))
    x = L.Conv2D(6, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = L.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False)(x)
    x = L.SeparableConv2D(4, 3, padding="same", use_bias=False)(x)
    x = L.Flatten()(x)
    model = keras.Model(inputs, L.Dense(3, use_bias=False)(x))
    graph = tf.function(lambda images: model(images)).get_concrete_function(tf.TensorSpec((1, 20, 16, 4)))
    profiler = tf.compat.v1.profiler
    options = profiler.ProfileOptionBuilder(profiler.ProfileOptionBuilder.float_operation())
    operations = profiler.profile(graph.graph, options=options.with_empty_output().build())
    assert 2 * sum(count_by_layer(model).values()) == operations.total_float_ops


def build_attention(**options) -> keras.Model:
    inputs = keras.Input((12, 8, 3))
    x = L.Reshape((6, 48), name="tokens")(inputs)
    x = L.EinsumDense("btc,cd->btd", (6, 10), name="embedding")(x)
    x = L.EinsumDense("...c,cd->...d", (10,), name="dotted")(x)
    few = L.Cropping1D((1, 1), name="few")(x)
    x = L.MultiHeadAttention(2, 5, name="attention", **options)(x, few)
    x = L.GroupQueryAttention(3, 6, 2, name="grouped")(x, x)
    return keras.Model(inputs, L.Dense(2, name="logits")(L.GlobalAveragePooling1D()(x)))


def test_attention_by_hand():
    counts = count_by_layer(build_attention())
    assert counts["embedding"] == 6 * 48 * 10
    assert counts["dotted"] == 6 * 10 * 10
    # Queries of 6 tokens; keys and values of 4; scores and sums of 2 heads; the projection of the outputs.
    assert counts["attention"] == 6 * 10 * 10 + 2 * (4 * 10 * 10) + 2 * (6 * 4 * 10) + 6 * 10 * 10
    # 6 heads of 3 for the queries, 2 for keys and values.
    assert counts["grouped"] == 6 * 10 * 18 + 2 * (6 * 10 * 6) + 2 * (6 * 6 * 18) + 6 * 18 * 10
    wide = count_by_layer(build_attention(value_dim=7, output_shape=10))
    assert wide["attention"] == 6 * 10 * 10 + 4 * 10 * (10 + 14) + 6 * 4 * (10 + 14) + 6 * 14 * 10


class Projection(L.Layer):
    """A custom layer with a matrix."""

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 3))

    def call(self, x):
        return keras.ops.matmul(x, self.matrix)


def test_a_layer_that_is_not_known_has_no_count():
    inputs = keras.Input((4, 4, 1))
    x = Projection(name="custom")(L.GlobalAveragePooling2D(name="mean")(inputs))
    counts = count_by_layer(keras.Model(inputs, L.Dense(2, name="logits")(x)))
    assert counts == {"mean": 0, "custom": None, "logits": 6}


# Millions of multiply-adds at 224x224: Howard et al. (2017), "MobileNets", table 4; Howard et al. (2019),
# "Searching for MobileNetV3", table 3; He et al. (2016), "Deep residual learning", table 1 (3.8 billion; as
# published for the first version); Simonyan and Zisserman's VGG16 as listed by Canziani et al. (2017),
# "An analysis of deep neural network models", figure 2 (15.5 billion); Liu et al. (2022), "A ConvNet for the
# 2020s", table 9.
@pytest.mark.parametrize(
    ("name", "millions", "tolerance"),
    [
        ("MobileNet", 569, 0.002),
        pytest.param("MobileNetV3Small", 56, 0.01, marks=pytest.mark.slow),
        pytest.param("ResNet50", 3_800, 0.02, marks=pytest.mark.slow),
        pytest.param("VGG16", 15_500, 0.005, marks=pytest.mark.slow),
        pytest.param("ConvNeXtTiny", 4_500, 0.015, marks=pytest.mark.slow),
    ],
)
def test_published_numbers(name, millions, tolerance):
    model = getattr(keras.applications, name)(weights=None, input_shape=(224, 224, 3))
    assert sum(count_by_layer(model).values()) == pytest.approx(millions * 1e6, rel=tolerance)
