"""The graph of a network's operations."""

from __future__ import annotations

import keras

from service.report.analysis.network import Network
from service.report.analysis.operation_graph import IMAGE, count_positions, trace_graph

L = keras.layers


def test_dropout_does_not_hide_a_shortcut():
    """In inference mode, dropout returns the very tensor that it receives."""
    inputs = keras.Input((16, 12, 1))
    x = L.Conv2D(2, 3, padding="same", name="start")(inputs)
    y = L.Conv2D(2, 3, padding="same", name="conv")(L.Dropout(0.5, name="dropout")(x))
    x = L.GlobalAveragePooling2D(name="mean")(L.Add(name="sum")([x, y]))
    network = Network(keras.Model(inputs, L.Dense(2, name="logits")(x)), head="logits")
    nodes = {node.name: node for node in trace_graph(network)}
    assert list(nodes) == ["start", "dropout", "conv", "sum", "mean", "logits"]
    assert nodes["start"].sources == (IMAGE,)
    assert nodes["dropout"].sources == ("start",)
    assert nodes["conv"].sources == ("dropout",)
    assert nodes["sum"].sources == ("start", "conv")
    assert nodes["sum"].input_shapes == ((16, 12, 2), (16, 12, 2))
    assert (nodes["start"].input_shapes, nodes["start"].shape) == (((16, 12, 1),), (16, 12, 2))
    assert nodes["logits"].dtype == "float32"


def test_nested_and_shared_layers_have_the_names_of_the_network():
    inner = keras.Sequential([L.Input((8, 8, 1)), L.Conv2D(1, 3, padding="same", name="c")], name="base")
    inputs = keras.Input((8, 8, 1))
    x = inner(inner(inputs))
    network = Network(keras.Model(inputs, L.Dense(2)(L.Flatten(name="flat")(x))), head="logits")
    nodes = trace_graph(network)
    assert [node.name for node in nodes][:3] == ["base/c", "base/c:2", "flat"]
    assert {layer.name for layer in network.layers} <= {node.name for node in nodes}
    assert [node.sources for node in nodes[1:3]] == [("base/c",), ("base/c:2",)]


def test_positions_are_all_axes_but_the_channels():
    assert [count_positions(shape) for shape in [(4, 5, 6), (7, 8), (9,)]] == [20, 7, 1]
