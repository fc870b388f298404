"""Optimizers against formulas in NumPy, and which weights are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from pipelines.errors import ConfigError
from service.recipe import OptimizerSpec
from service.training.optimizers import (
    apply_gradients,
    build_optimizer,
    check_no_decay,
    freeze_layers,
    matches,
)

RATES = (0.1, 0.2, 0.05)
KERNEL = np.array([[0.5, -1.0], [2.0, 0.25]])
BIAS = np.array([1.0, -0.5])
GRADIENTS = [  # of three updates
    (np.array([[0.3, -0.2], [0.1, 0.4]]), np.array([0.2, -0.1])),
    (np.array([[-0.1, 0.5], [0.2, 0.1]]), np.array([0.3, 0.3])),
    (np.array([[0.2, 0.2], [-0.6, -0.3]]), np.array([-0.5, 0.1])),
]
CLOSE: dict[str, Any] = {"rtol": 2e-5, "atol": 1e-5}  # 1 - 0.999 has an error of 3e-5 in float32
# From the gradients so far and the weights to the step at a learning rate of 1
Update = Callable[[list[np.ndarray], np.ndarray], np.ndarray]


def build_dense_model() -> keras.Model:
    image = keras.Input((2,))
    model = keras.Model(image, keras.layers.Dense(2, name="dense")(image))
    model.set_weights([KERNEL.astype(np.float32), BIAS.astype(np.float32)])
    return model


def train_dense(spec: OptimizerSpec) -> list[np.ndarray]:
    model = build_dense_model()
    optimizer = build_optimizer(spec, model.trainable_variables)
    optimizer.build(model.trainable_variables)
    for rate, gradients in zip(RATES, GRADIENTS, strict=True):
        tensors = [keras.ops.convert_to_tensor(gradient, "float32") for gradient in gradients]
        rate = keras.ops.convert_to_tensor(rate)
        apply_gradients(optimizer, tensors, model.trainable_variables, rate, spec.l2)
    return model.get_weights()


def average(values: list[np.ndarray], decay: float) -> np.ndarray:
    """Exponential average from zero, written as a sum."""
    return sum((1 - decay) * decay ** (len(values) - 1 - i) * value for i, value in enumerate(values))


def adam_step(
    gradients: list[np.ndarray], b1: float, b2: float, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and root mean square of the gradients, both corrected for their bias towards zero."""
    t = len(gradients)
    mean = average(gradients, b1) / (1 - b1**t)
    square = average([g**2 for g in gradients], b2) / (1 - b2**t)
    return mean, np.sqrt(square) + epsilon


def adam(gradients: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    mean, root = adam_step(gradients, 0.9, 0.999, 1e-7)
    return mean / root


def adam_of_other_betas(gradients: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    # Keras adds epsilon before correcting the bias
    mean, root = adam_step(gradients, 0.5, 0.75, 0.01 / np.sqrt(1 - 0.75 ** len(gradients)))
    return mean / root


def lion(gradients: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    before = average(gradients[:-1], 0.99) if len(gradients) > 1 else 0.0
    return np.sign(0.9 * before + 0.1 * gradients[-1])


def rmsprop(gradients: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    return gradients[-1] / np.sqrt(average([g**2 for g in gradients], 0.9) + 1e-7)


def sgd(gradients: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    return gradients[-1]


def apply_updates(start: np.ndarray, which: int, update: Update, decay: float) -> np.ndarray:
    weights = start.copy()
    for t, rate in enumerate(RATES):
        weights = weights * (1 - rate * decay)
        weights = weights - rate * update([g[which] for g in GRADIENTS[: t + 1]], weights)
    return weights


@pytest.mark.parametrize(
    ("settings", "update", "decay"),
    [
        ({"name": "sgd"}, sgd, 0.0),
        ({"name": "sgd", "weight_decay": 0.5}, sgd, 0.5),
        ({"name": "rmsprop", "weight_decay": 0.5}, rmsprop, 0.5),
        ({"name": "adam"}, adam, 0.0),
        ({"name": "adam", "weight_decay": 0.5}, adam, 0.5),
        ({"name": "adam", "beta_1": 0.5, "beta_2": 0.75, "epsilon": 0.01}, adam_of_other_betas, 0.0),
        ({"name": "adamw"}, adam, 0.004),
        ({"name": "adamw", "weight_decay": 0.5}, adam, 0.5),
        ({"name": "adamw", "weight_decay": 0.0}, adam, 0.0),
        ({"name": "sgd", "l2": 0.5}, sgd, 0.5),
        ({"name": "lion", "weight_decay": 0.5}, lion, 0.5),
    ],
)
def test_three_updates_decay_kernels_and_not_biases(
    settings: dict[str, Any], update: Update, decay: float
) -> None:
    kernel, bias = train_dense(OptimizerSpec(**settings))
    np.testing.assert_allclose(kernel, apply_updates(KERNEL, 0, update, decay), **CLOSE)
    np.testing.assert_allclose(bias, apply_updates(BIAS, 1, update, 0.0), **CLOSE)
    kernel, bias = train_dense(OptimizerSpec(**settings, no_decay=("dense/k*",)))
    np.testing.assert_allclose(kernel, apply_updates(KERNEL, 0, update, 0.0), **CLOSE)
    np.testing.assert_allclose(bias, apply_updates(BIAS, 1, update, decay), **CLOSE)


@pytest.mark.parametrize("decay", [None, 0.0, 0.5])
def test_lamb_is_algorithm_2_of_its_paper(decay: float | None) -> None:
    kernel, bias = KERNEL.copy(), BIAS.copy()
    for t, rate in enumerate(RATES):
        mean, root = adam_step([g[0] for g in GRADIENTS[: t + 1]], 0.9, 0.999, 1e-6)
        direction = mean / root + (decay or 0.0) * kernel
        kernel = kernel - rate * np.linalg.norm(kernel) / np.linalg.norm(direction) * direction
        mean, root = adam_step([g[1] for g in GRADIENTS[: t + 1]], 0.9, 0.999, 1e-6)
        bias = bias - rate * mean / root  # neither decayed nor adapted
    spec = OptimizerSpec(name="lamb", weight_decay=decay, epsilon=1e-6)
    trained = train_dense(spec)
    np.testing.assert_allclose(trained[0], kernel, **CLOSE)
    np.testing.assert_allclose(trained[1], bias, **CLOSE)


def test_lamb_moves_weights_that_are_zero() -> None:
    model = build_dense_model()
    model.set_weights([np.zeros_like(KERNEL, np.float32), BIAS.astype(np.float32)])
    optimizer = build_optimizer(OptimizerSpec(name="lamb", weight_decay=0.1), model.trainable_variables)
    optimizer.build(model.trainable_variables)
    gradients = [keras.ops.convert_to_tensor(gradient, "float32") for gradient in GRADIENTS[0]]
    apply_gradients(optimizer, gradients, model.trainable_variables, keras.ops.convert_to_tensor(0.1))
    np.testing.assert_allclose(model.get_weights()[0], -0.1 * np.sign(GRADIENTS[0][0]), rtol=1e-4)


def test_the_momentum_accumulates_the_l2_penalty() -> None:
    weights = KERNEL.copy()
    velocity = np.zeros_like(KERNEL)
    for rate, (gradient, _) in zip(RATES, GRADIENTS, strict=True):
        velocity = 0.9 * velocity - rate * (gradient + 0.5 * weights)
        weights = weights + velocity
    trained = train_dense(OptimizerSpec(name="sgd", momentum=0.9, l2=0.5))
    np.testing.assert_allclose(trained[0], weights, rtol=1e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_momentum(nesterov: bool) -> None:
    weights = KERNEL.copy()
    velocity = np.zeros_like(KERNEL)
    for rate, (gradient, _) in zip(RATES, GRADIENTS, strict=True):
        velocity = 0.9 * velocity - rate * gradient
        weights = weights + (0.9 * velocity - rate * gradient if nesterov else velocity)
    spec = OptimizerSpec(name="sgd", momentum=0.9, nesterov=nesterov)
    np.testing.assert_allclose(train_dense(spec)[0], weights, rtol=1e-5)


def test_rmsprop_with_momentum() -> None:
    weights = KERNEL.copy()
    momentum = np.zeros_like(KERNEL)
    for t, rate in enumerate(RATES):
        momentum = 0.9 * momentum + rate * rmsprop([g[0] for g in GRADIENTS[: t + 1]], weights)
        weights = weights - momentum
    np.testing.assert_allclose(
        train_dense(OptimizerSpec(name="rmsprop", momentum=0.9))[0], weights, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam", "adamw", "lamb", "lion"])
def test_an_update_equals_that_of_keras(name: str) -> None:
    spec = OptimizerSpec(name=name, learning_rate=0.1, weight_decay=0.01)
    results = []
    for is_keras in (False, True):
        model = build_dense_model()
        model.layers[-1].kernel.constraint = keras.constraints.NonNeg()
        optimizer = build_optimizer(spec, model.trainable_variables)
        optimizer.build(model.trainable_variables)
        for gradients in GRADIENTS:
            tensors = [keras.ops.convert_to_tensor(gradient, "float32") for gradient in gradients]
            if is_keras:
                optimizer.apply(tensors, model.trainable_variables)
            else:
                rate = keras.ops.convert_to_tensor(0.1, "float32")
                apply_gradients(optimizer, tensors, model.trainable_variables, rate)
        assert int(optimizer.iterations) == len(GRADIENTS)
        results.append(model.get_weights())
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=0)


def test_keras_never_clips() -> None:
    spec = OptimizerSpec(name="sgd", clip_norm=1e-3)
    np.testing.assert_allclose(train_dense(spec)[0], apply_updates(KERNEL, 0, sgd, 0.0), rtol=1e-5)


def test_a_second_optimizer_has_the_same_variable_names() -> None:
    for _ in range(2):
        optimizer = build_optimizer(OptimizerSpec(), build_dense_model().trainable_variables)
        assert [v.path for v in optimizer.variables] == ["adam/iteration", "adam/learning_rate"]


def test_by_default_normalisation_is_not_decayed() -> None:
    model = build_nested_model()
    optimizer = build_optimizer(OptimizerSpec(name="sgd", weight_decay=0.5), model.trainable_variables)
    for v in model.trainable_variables:
        v.assign(keras.ops.ones_like(v))
    optimizer.learning_rate.assign(1.0)
    optimizer.apply([keras.ops.zeros_like(v) for v in model.trainable_variables], model.trainable_variables)
    decayed = {v.path for v in model.trainable_variables if float(keras.ops.max(v)) == 0.5}
    assert decayed == {"block1_conv/kernel", "block2_conv/kernel", "logits/kernel"}


def test_a_pattern_that_matches_no_variable_is_an_error() -> None:
    check_no_decay(OptimizerSpec(name="adamw"), build_dense_model())  # the default patterns may match nothing
    check_no_decay(OptimizerSpec(name="adamw", no_decay=("dense/kern*", "*/bias")), build_dense_model())
    with pytest.raises(ConfigError, match=r"optimizer\.no_decay=dens/kernel\. Fix: use dense/kernel"):
        check_no_decay(OptimizerSpec(name="adamw", no_decay=("*/bias", "dens/kernel")), build_dense_model())


def build_nested_model() -> keras.Model:
    """Model > backbone > block1_conv, block1_norm, block2_conv; then logits."""
    image = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(2, 3, name="block1_conv", use_bias=False)(image)
    x = keras.layers.BatchNormalization(name="block1_norm")(x)
    x = keras.layers.Conv2D(2, 1, name="block2_conv")(x)
    backbone = keras.Model(image, x, name="backbone")
    outer = keras.Input((4, 4, 1))
    return keras.Model(
        outer, keras.layers.Dense(1, name="logits")(keras.layers.Flatten()(backbone(outer))), name="net"
    )


BLOCK1 = ["block1_conv/kernel", "block1_norm/gamma", "block1_norm/beta"]
BLOCK2 = ["block2_conv/kernel", "block2_conv/bias"]
LOGITS = ["logits/kernel", "logits/bias"]


@pytest.mark.parametrize(
    ("freeze", "train", "left"),
    [
        ((), (), BLOCK1 + BLOCK2 + LOGITS),
        (("backbone",), (), LOGITS),
        (("backbone/*",), (), LOGITS),
        (("block1*",), (), BLOCK2 + LOGITS),
        (("backbone/block2_conv", "logits"), (), BLOCK1),
        (("*",), ("logits",), LOGITS),
        (("*",), ("block2*", "logits"), BLOCK2 + LOGITS),
        (("backbone",), ("backbone/block2*",), BLOCK2 + LOGITS),
        (("*norm",), (), [BLOCK1[0], *BLOCK2, *LOGITS]),
    ],
)
def test_the_patterns_determine_the_trainable_weights(
    freeze: tuple[str, ...], train: tuple[str, ...], left: list[str]
) -> None:
    model = build_nested_model()
    freeze_layers(model, ("*_conv",))  # as an earlier stage did
    model.get_layer("logits").trainable = False  # as the builder of the model did
    assert [v.path for v in freeze_layers(model, freeze, train)] == left
    assert [v.path for v in model.trainable_variables] == left


def test_patterns_reach_into_nested_models() -> None:
    image = keras.Input((4, 4, 1))
    whole = keras.Model(image, build_nested_model()(image), name="whole")
    assert [v.path for v in freeze_layers(whole, ("net/backbone/block1*", "logits"))] == BLOCK2


def test_frozen_batch_normalization_keeps_its_statistics_and_uses_them() -> None:
    model = build_nested_model()
    images = np.random.default_rng(0).uniform(1, 2, (8, 4, 4, 1)).astype(np.float32)
    norm = model.get_layer("backbone").get_layer("block1_norm")

    def changes() -> tuple[bool, bool]:
        before = [v.numpy().copy() for v in norm.non_trainable_variables]
        in_training = model(images, training=True)
        in_inference = model(images, training=False)
        after = [v.numpy() for v in norm.non_trainable_variables]
        return any((b != a).any() for b, a in zip(before, after, strict=True)), not np.allclose(
            in_training, in_inference, atol=1e-4
        )

    freeze_layers(model, ("block1*",))
    assert changes() == (False, False)
    freeze_layers(model, ("block1_conv",))
    assert changes() == (True, True)


@pytest.mark.parametrize(
    ("freeze", "train", "message"),
    [
        (
            ("blok2*",),
            (),
            "Expected a pattern of the layers of net. Received: freeze=blok2*. Fix: use backbone/block2_conv",
        ),
        (("Block2*",), (), "freeze=Block2*"),
        (("back/block1*",), (), "freeze=back/block1*"),
        (("*",), ("logit",), "train=logit. Fix: use logits"),
        (("*",), (), "Expected a layer that learns. Received: freeze=* (all of net)"),
    ],
)
def test_patterns_that_match_no_layer_or_all_of_them_are_errors(
    freeze: tuple[str, ...], train: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        freeze_layers(build_nested_model(), freeze, train)
    assert message in str(error.value)


def test_a_pattern_matches_names_or_paths() -> None:
    assert matches("b", "a/b/c")
    assert matches("a", "a/b/c")
    assert matches("a/b", "a/b/c")
    assert not matches("b/c", "a/b/c")  # a path begins at the model
    assert not matches("b*/c", "a/b/c")
    assert matches("*/c", "a/b/c")
    assert not matches("b", "ab")
