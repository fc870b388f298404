"""Networks under analysis: logits, layers of nested models, and the replayed graph against Keras itself."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines.errors import ConfigError
from service.inference.graph import replay_graph
from service.report.analysis.network import Network

L = keras.layers
RNG = np.random.default_rng(0)


def random_images(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def nested_model(activation: str | None = "softmax", units: int = 3) -> keras.Model:
    """A functional model in a Sequential in a functional model, with batch norm and a skip connection."""
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
    return keras.Model(image, L.Dense(units, activation=activation, name="predictions")(x))


def test_layers_of_nested_models_have_names_shapes_and_their_own_outputs():
    model = nested_model()
    network = Network(model)
    assert [(layer.name, layer.kind, layer.shape) for layer in network.layers] == [
        ("own_scale", "Rescaling", (6, 8, 1)),
        ("wrapped/base/inner", "Conv2D", (6, 8, 2)),
        ("wrapped/base/norm", "BatchNormalization", (6, 8, 2)),
        ("wrapped/base/sum", "Add", (6, 8, 2)),
        ("wrapped/pool", "MaxPooling2D", (3, 4, 2)),
        ("predictions", "Dense", (3,)),
    ]
    assert network.last_feature_map is not None
    assert network.last_feature_map.name == "wrapped/base/sum"  # the last one before pooling
    images = random_images(2, 6, 8, 1)
    trace = network.run(images)
    base = model.get_layer("wrapped").layers[0]
    names = ("inner", "norm", "sum")
    inner = keras.Model(base.input, [base.get_layer(name).output for name in names])
    for name, expected in zip(names, inner(images / 255.0, training=False), strict=True):
        np.testing.assert_allclose(trace.outputs[f"wrapped/base/{name}"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(trace.inputs["wrapped/base/norm"], trace.outputs["wrapped/base/inner"])
    np.testing.assert_allclose(trace.outputs["predictions"], model(images, training=False), rtol=1e-5)


def test_the_replayed_graph_gives_the_output_of_keras():
    model = nested_model()
    images = tf.constant(random_images(3, 6, 8, 1), tf.float32)
    paths: list[str] = []

    def run_operation(path, operation, args, kwargs):
        paths.append(path)
        return operation(*args, **kwargs)

    replayed = replay_graph(model, images, run_operation)
    np.testing.assert_allclose(replayed, model(images, training=False), rtol=1e-6)
    inner = ["wrapped/base/inner", "wrapped/base/norm", "wrapped/base/sum", "wrapped/pool"]
    assert paths == ["flip", "own_scale", *inner, "drop", "flat", "predictions"]


HEADS = {
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


@pytest.mark.parametrize("head", HEADS)
def test_logits_are_the_values_before_softmax_and_sigmoid(head):
    image = keras.Input((1, 2, 1))
    model = keras.Model(image, HEADS[head](L.Flatten()(image)))
    units = model.output_shape[1]
    # Logits far beyond those at which softmax saturates.
    kernel = np.array([[3.0, -2.0, 0.5], [-80.0, 1.0, 40.0]], np.float32)[:, :units]
    model.set_weights([kernel, np.arange(units, dtype=np.float32)])
    images = random_images(4, 1, 2, 1)
    z = (images / 255.0).reshape(4, 2) @ kernel + np.arange(units)
    expected = np.hstack([-z / 2, z / 2]) if units == 1 else z
    network = Network(model, 1 / 255)
    trace = network.run(images)
    np.testing.assert_allclose(trace.logits, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        trace.outputs[network.layers[-1].name], model(images / 255.0, training=False), rtol=1e-4, atol=1e-6
    )


def test_the_softmax_of_the_logits_is_the_prediction_of_a_sigmoid_unit():
    network = Network(nested_model("sigmoid", 1))
    images = random_images(5, 6, 8, 1)
    predicted = np.asarray(network.model(images, training=False))[:, 0]
    np.testing.assert_allclose(tf.nn.softmax(network.run(images).logits)[:, 1], predicted, rtol=1e-5)


def test_the_model_is_unchanged_after_a_run():
    model = nested_model()
    before = [weights.copy() for weights in model.get_weights()]
    network = Network(model, fast=True)
    network.compile_graph(lambda x: network.run(x).logits)(random_images(2, 6, 8, 1))
    assert model.get_layer("predictions").activation is keras.activations.softmax
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_bfloat16_is_close_to_float32_but_not_equal():
    model = nested_model()
    images = random_images(8, 6, 8, 1)
    exact = Network(model).run(images).logits.numpy()
    fast = Network(model, fast=True).run(images).logits.numpy()
    assert 0 < np.abs(exact - fast).max() < 0.05 * np.abs(exact).max()


def test_a_graph_is_traced_once_and_follows_the_weights():
    model = keras.Sequential([L.Input((1, 1, 1)), L.Flatten(), L.Dense(2, use_bias=False)])
    network = Network(model)
    traces: list[int] = []

    def compute_logits(x):
        traces.append(1)
        return network.run(x).logits

    graph = network.compile_graph(compute_logits)
    model.set_weights([np.array([[1.0, 2.0]])])
    np.testing.assert_array_equal(graph(np.full((1, 1, 1, 1), 3, np.uint8)), [[3, 6]])
    model.set_weights([np.array([[-1.0, 0.5]])])
    np.testing.assert_array_equal(graph(np.full((2, 1, 1, 1), 4, np.uint8)), [[-4, 2]] * 2)
    assert len(traces) == 1


def test_the_runs_of_a_shared_layer_have_names_of_their_own():
    image = keras.Input((4, 4, 1))
    shared = L.Conv2D(1, 1, use_bias=False, name="shared")
    model = keras.Model(image, L.Dense(2)(L.Flatten()(shared(shared(image)))))
    shared.set_weights([np.full((1, 1, 1, 1), 3.0)])
    trace = Network(model).run(np.ones((1, 4, 4, 1), np.uint8))
    assert trace.outputs["shared"].numpy().max() == 3
    assert trace.outputs["shared:2"].numpy().max() == 9


def test_a_run_can_stop_after_a_layer():
    network = Network(nested_model())
    trace = network.run(random_images(1, 6, 8, 1), stop_after="wrapped/base/inner")
    assert list(trace.outputs)[-1] == "wrapped/base/inner"
    assert trace.logits is None


def test_size_independence_ends_at_the_first_layer_that_fixes_the_size():
    network = Network(nested_model())
    assert network.is_size_independent("wrapped/pool")
    assert not network.is_size_independent("predictions")


def test_a_network_of_dense_layers_has_no_feature_map():
    dense = keras.Sequential([L.Input((4, 4, 1)), L.Rescaling(1 / 255), L.Flatten(), L.Dense(2)])
    assert Network(dense).last_feature_map is None


def test_a_model_that_ends_in_another_activation_is_refused():
    model = keras.Sequential([L.Input((4, 4, 1)), L.Flatten(), L.Dense(2, activation="tanh")])
    with pytest.raises(ConfigError, match=r"within -1 and 1 .*as of tanh"):
        Network(model)


def test_an_unknown_layer_is_an_error_that_suggests_a_name():
    with pytest.raises(ConfigError, match=r"layer=wrapped/base/iner.*use wrapped/base/inner"):
        Network(nested_model()).find_layer("wrapped/base/iner")


@pytest.mark.parametrize("units", [1, 3])
def test_probabilities_that_no_layer_computes_from_logits_have_logits_too(units):
    """The head is an average of softmax or sigmoid outputs, whose inputs are not the logits of the model."""
    keras.utils.set_random_seed(4)
    image = keras.Input((4, 4, 1))
    x = L.Flatten()(L.Conv2D(2, 3)(L.Rescaling(1 / 255)(image)))
    activation = "sigmoid" if units == 1 else "softmax"
    members = [L.Dense(units, activation=activation)(x) for _ in range(3)]
    model = keras.Model(image, L.Average()(members))
    images = random_images(5, 4, 4, 1)
    logits = Network(model).run(images).logits
    expected = model(images, training=False).numpy()
    if units == 1:
        expected = np.concatenate([1 - expected, expected], axis=1)
    np.testing.assert_allclose(tf.nn.softmax(logits), expected, rtol=1e-5)


def test_the_offset_is_added_after_the_scale():
    image = keras.Input((1, 1, 1))
    model = keras.Model(image, L.Dense(2, kernel_initializer="ones")(L.Flatten()(image)))
    logits = Network(model, 1 / 127.5, offset=-1.0, head="logits").run(np.full((1, 1, 1, 1), 255.0)).logits
    np.testing.assert_allclose(logits, [[1.0, 1.0]], rtol=1e-6)
