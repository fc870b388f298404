"""Networks looked into: logits, layers of nested models, and the one private call of Keras held to the model's own answer."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines.errors import ConfigError
from service.report.analysis.network import Network, replay_graph

L = keras.layers
RNG = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def nested(end: str | None = "softmax", units: int = 3) -> keras.Model:
    """A base inside a Sequential inside a functional model, behind augmentation, with a skip connection and batch statistics."""
    image = keras.Input((6, 8, 1))
    x = L.Conv2D(2, 3, name="inner", activation="relu", padding="same")(image)
    base = keras.Model(image, L.Add(name="sum")([x, L.BatchNormalization(name="norm")(x)]), name="base")
    base.get_layer("norm").set_weights(
        [np.array([2.0, 0.5]), np.array([0.1, 0.2]), np.array([0.3, -0.2]), np.array([0.5, 2.0])]
    )
    image = keras.Input((6, 8, 1))
    x = L.Rescaling(1 / 255, name="own_scale")(L.RandomFlip(seed=1, name="flip")(image))
    x = keras.Sequential([base, L.MaxPooling2D(name="pool")], name="wrapped")(x)
    x = L.Flatten(name="flat")(L.Dropout(0.5, name="drop")(x))
    return keras.Model(image, L.Dense(units, activation=end, name="answer")(x))


def test_layers_of_nested_models_have_names_shapes_and_their_own_values():
    model = nested()
    network = Network(model)
    assert [(tap.name, tap.kind, tap.shape) for tap in network.layers] == [
        ("own_scale", "Rescaling", (6, 8, 1)),
        ("wrapped/base/inner", "Conv2D", (6, 8, 2)),
        ("wrapped/base/norm", "BatchNormalization", (6, 8, 2)),
        ("wrapped/base/sum", "Add", (6, 8, 2)),
        ("wrapped/pool", "MaxPooling2D", (3, 4, 2)),
        ("answer", "Dense", (3,)),
    ]
    assert network.last_feature_map is not None
    assert network.last_feature_map.name == "wrapped/base/sum"  # the last map of full size, not the pool's
    images = pixels(2, 6, 8, 1)
    trace = network.run(images)
    base = model.get_layer("wrapped").layers[0]
    inner = keras.Model(base.input, [base.get_layer(name).output for name in ("inner", "norm", "sum")])
    for name, wanted in zip(("inner", "norm", "sum"), inner(images / 255.0, training=False), strict=True):
        np.testing.assert_allclose(trace.outputs[f"wrapped/base/{name}"], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(trace.inputs["wrapped/base/norm"], trace.outputs["wrapped/base/inner"])
    np.testing.assert_allclose(trace.outputs["answer"], model(images, training=False), rtol=1e-5)


def test_the_private_call_runs_the_graph_as_keras_does():
    model = nested()
    images = tf.constant(pixels(3, 6, 8, 1), tf.float32)
    ran: list[str] = []

    def step(path, operation, args, kwargs):
        ran.append(path)
        return operation(*args, **kwargs)

    np.testing.assert_allclose(replay_graph(model, images, step), model(images, training=False), rtol=1e-6)
    within = ["wrapped/base/inner", "wrapped/base/norm", "wrapped/base/sum", "wrapped/pool"]
    assert ran == ["flip", "own_scale", *within, "drop", "flat", "answer"]


ENDS = {
    "softmax unit": lambda x: L.Dense(3, activation="softmax")(x),
    "softmax layer": lambda x: L.Softmax()(L.Dense(3)(x)),
    "activation layer": lambda x: L.Activation("softmax")(L.Dense(3)(x)),
    "softmax operation": lambda x: keras.ops.softmax(L.Dense(3)(x)),
    "softmax, then dropout": lambda x: L.Dropout(0.5)(L.Dense(3, activation="softmax")(x)),
    "logits": lambda x: L.Dense(3)(x),
    "sigmoid unit": lambda x: L.Dense(1, activation="sigmoid")(x),
    "sigmoid operation": lambda x: keras.ops.sigmoid(L.Dense(1)(x)),
    "one logit": lambda x: L.Dense(1)(x),
}


@pytest.mark.parametrize("end", ENDS)
def test_logits_come_before_softmax_and_sigmoid(end):
    image = keras.Input((1, 2, 1))
    model = keras.Model(image, ENDS[end](L.Flatten()(image)))
    units = model.output_shape[1]
    kernel = np.array([[3.0, -2.0, 0.5], [-80.0, 1.0, 40.0]], np.float32)[
        :, :units
    ]  # far beyond where softmax saturates
    model.set_weights([kernel, np.arange(units, dtype=np.float32)])
    images = pixels(4, 1, 2, 1)
    z = (images / 255.0).reshape(4, 2) @ kernel + np.arange(units)
    wanted = np.hstack([-z / 2, z / 2]) if units == 1 else z
    network = Network(model, 1 / 255)
    trace = network.run(images)
    np.testing.assert_allclose(trace.logits, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        trace.outputs[network.layers[-1].name], model(images / 255.0, training=False), rtol=1e-4, atol=1e-6
    )


def test_softmax_of_the_logits_is_the_answer():
    network = Network(nested("sigmoid", 1))
    images = pixels(5, 6, 8, 1)
    answer = np.asarray(network.model(images, training=False))[:, 0]
    np.testing.assert_allclose(tf.nn.softmax(network.run(images).logits)[:, 1], answer, rtol=1e-5)


def test_looking_changes_nothing_in_the_model():
    model = nested()
    before = [w.copy() for w in model.get_weights()]
    network = Network(model, fast=True)
    network.compile_graph(lambda x: network.run(x).logits)(pixels(2, 6, 8, 1))
    assert model.get_layer("answer").activation is keras.activations.softmax
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_bfloat16_is_near_and_no_more_than_that():
    model = nested()
    images = pixels(8, 6, 8, 1)
    exact, fast = (
        Network(model).run(images).logits.numpy(),
        Network(model, fast=True).run(images).logits.numpy(),
    )
    assert 0 < np.abs(exact - fast).max() < 0.05 * np.abs(exact).max()


def test_graphs_take_any_batch_and_follow_the_weights():
    model = keras.Sequential([L.Input((1, 1, 1)), L.Flatten(), L.Dense(2, use_bias=False)])
    traced: list[int] = []
    network = Network(model)
    logits = network.compile_graph(lambda x: (traced.append(1), network.run(x).logits)[1])
    model.set_weights([np.array([[1.0, 2.0]])])
    np.testing.assert_array_equal(logits(np.full((1, 1, 1, 1), 3, np.uint8)), [[3, 6]])
    model.set_weights([np.array([[-1.0, 0.5]])])
    np.testing.assert_array_equal(logits(np.full((2, 1, 1, 1), 4, np.uint8)), [[-4, 2]] * 2)
    assert len(traced) == 1


def test_a_layer_that_runs_twice_is_told_apart():
    image = keras.Input((4, 4, 1))
    shared = L.Conv2D(1, 1, use_bias=False, name="shared")
    model = keras.Model(image, L.Dense(2)(L.Flatten()(shared(shared(image)))))
    shared.set_weights([np.full((1, 1, 1, 1), 3.0)])
    trace = Network(model).run(np.ones((1, 4, 4, 1), np.uint8))
    assert trace.outputs["shared"].numpy().max() == 3
    assert trace.outputs["shared:2"].numpy().max() == 9


def test_what_has_no_feature_maps_or_another_end():
    dense = keras.Sequential([L.Input((4, 4, 1)), L.Rescaling(1 / 255), L.Flatten(), L.Dense(2)])
    assert Network(dense).last_feature_map is None
    with pytest.raises(ConfigError, match="activation=tanh"):
        Network(keras.Sequential([L.Input((4, 4, 1)), L.Flatten(), L.Dense(2, activation="tanh")]))
    with pytest.raises(ConfigError, match=r"layer=wrapped/base/iner.*use wrapped/base/inner"):
        Network(nested()).find_layer("wrapped/base/iner")
