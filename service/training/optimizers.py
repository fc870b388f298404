"""Builds the optimizer of a configuration, and freezes layers by patterns.

Patterns of layers are shell-style. A pattern without a slash is matched against the name of a layer at any
depth (`block5*`), one with a slash against the path from the model on (`backbone/block5*`). A nested model
that matches includes all of its layers. `*` also matches slashes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

import keras
import tensorflow as tf

from pipelines.errors import ConfigError
from service.recipe import NO_DECAY, OptimizerSpec
from service.training.lamb import Lamb
from service.training.strategy import find_replica_copy

_OPTIMIZERS = {
    "sgd": keras.optimizers.SGD,
    "rmsprop": keras.optimizers.RMSprop,
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "lamb": Lamb,
    "lion": keras.optimizers.Lion,
}
_KERAS_ARGUMENTS = ("momentum", "nesterov", "beta_1", "beta_2", "epsilon", "weight_decay")


def build_optimizer(spec: OptimizerSpec, variables: Sequence[keras.Variable]) -> keras.Optimizer:
    """Returns the Keras optimizer of a spec, not built yet. Call it inside the strategy's scope.

    Its `learning_rate` is a variable, to be assigned before each update. It never clips: `spec.clip_norm`
    applies to the sum over the replicas.

    Args:
        spec: Name and parameters of the optimizer.
        variables: Variables that it will train; those whose path matches `spec.no_decay` do not decay.
    """
    arguments = {name: getattr(spec, name) for name in _KERAS_ARGUMENTS if getattr(spec, name)}
    if spec.name == "adamw" and spec.weight_decay is not None:
        arguments["weight_decay"] = spec.weight_decay  # 0 included: the default of Keras is 0.004
    # With a name, or the second optimizer of a process would be `adam_1`.
    optimizer = _OPTIMIZERS[spec.name](float(spec.learning_rate), name=spec.name, **arguments)
    excluded = [v for v in variables if any(fnmatchcase(v.path, pattern) for pattern in spec.no_decay)]
    optimizer.exclude_from_weight_decay(var_list=excluded)
    return optimizer


def apply_gradients(
    optimizer: keras.Optimizer,
    gradients: Sequence[tf.Tensor],
    weights: Sequence[keras.Variable],
    rate: tf.Tensor,
    l2: float = 0.0,
) -> None:
    """Updates the weights on this replica, as `Optimizer.apply` does on all of them.

    Keras' own method leaves the replica to visit every copy of every variable, which XLA cannot compile, and
    sums the gradients once more. Call it on every replica, with the same gradients.

    Args:
        optimizer: Optimizer from `build_optimizer`, built for the weights.
        gradients: Gradient of each weight, after the sum over all replicas.
        weights: The variables to update.
        rate: Learning rate of the update, float32 scalar.
        l2: Factor of the L2 penalty on the weights that decay (see `OptimizerSpec.l2`).
    """
    find_replica_copy(optimizer.learning_rate.value).assign(rate)
    for gradient, weight in zip(gradients, weights, strict=True):
        if optimizer.weight_decay is not None and optimizer._use_weight_decay(weight):
            factor = tf.cast(optimizer.weight_decay * rate, weight.dtype)
            optimizer.assign_sub(weight, weight.value * factor)
        if l2 and optimizer._use_weight_decay(weight):
            gradient = gradient + l2 * weight.value
        optimizer.update_step(gradient, weight.value, rate)
        if weight.constraint is not None:
            weight.assign(weight.constraint(weight))
    find_replica_copy(optimizer.iterations.value).assign_add(1)


def check_no_decay(spec: OptimizerSpec, model: keras.Model) -> None:
    """Checks that each pattern of `no_decay` matches a variable; the default patterns need not.

    Args:
        spec: Name and parameters of the optimizer.
        model: Model whose variables are matched.

    Raises:
        ConfigError: A pattern matches no variable; names the most similar paths.
    """
    paths = [v.path for v in model.weights]
    for pattern in spec.no_decay:
        if pattern in NO_DECAY:
            continue
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise ConfigError(
                "a pattern of the paths of variables",
                f"optimizer.no_decay={pattern}",
                _suggest(pattern, paths),
            )


def freeze_layers(
    model: keras.Model, freeze: Sequence[str], train: Sequence[str] = ()
) -> list[keras.Variable]:
    """Freezes layers by name, unfreezes all others, and returns the trainable weights.

    Only the patterns decide: a layer that the model function has frozen learns unless they match it. A frozen
    layer has `trainable=False`, so that a frozen BatchNormalization uses and keeps its stored statistics.
    Compile the steps afterwards.

    Args:
        model: Model whose layers may be models themselves.
        freeze: Patterns of layers that do not learn.
        train: Patterns of layers that learn although `freeze` matches them.

    Returns:
        Trainable weights in the order of the model.

    Raises:
        ConfigError: A pattern matches no layer, or no trainable weight is left.
    """
    layers = dict(walk_layers(model))
    _check_layer_patterns(model, layers, "freeze", freeze)
    _check_layer_patterns(model, layers, "train", train)
    # False first, because Keras passes a value on to nested layers only if it changes.
    model.trainable = False
    model.trainable = True
    for path, layer in layers.items():
        if _matches_any(freeze, path) and not _matches_any(train, path):
            layer.trainable = False
    weights = list(model.trainable_variables)
    if not weights:
        received = f"freeze={', '.join(freeze)} (all of {model.name})"
        raise ConfigError(
            "a layer that learns", received, "freeze fewer layers, or name those that learn in train"
        )
    return weights


def _check_layer_patterns(
    model: keras.Model, layers: Iterable[str], key: str, patterns: Sequence[str]
) -> None:
    for pattern in patterns:
        if not any(matches(pattern, path) for path in layers):
            raise ConfigError(
                f"a pattern of the layers of {model.name}", f"{key}={pattern}", _suggest(pattern, layers)
            )


def matches(pattern: str, path: str) -> bool:
    """Tells whether a pattern matches a layer, or a model that contains it.

    Args:
        pattern: Shell-style pattern; see the docstring of this module.
        path: Names from the model on, separated by slashes.
    """
    names = path.split("/")
    if "/" not in pattern:
        return any(fnmatchcase(name, pattern) for name in names)
    prefixes = ["/".join(names[: depth + 1]) for depth in range(len(names))]
    return any(fnmatchcase(prefix, pattern) for prefix in prefixes)


def _matches_any(patterns: Iterable[str], path: str) -> bool:
    return any(matches(pattern, path) for pattern in patterns)


def walk_layers(model: keras.Model, parent: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields the layers of a model with their paths, the layers of a nested model in its place.

    Args:
        model: Model whose layers may be models themselves.
        parent: Path of the model, with a slash at its end.
    """
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from walk_layers(layer, f"{parent}{layer.name}/")
        else:
            yield parent + layer.name, layer


def _suggest(pattern: str, names: Iterable[str]) -> str:
    """Returns a fix for a pattern that matches nothing: the most similar names."""
    similar = difflib.get_close_matches(pattern.strip("*"), sorted(names), n=3, cutoff=0.0)
    return f"use {' or '.join(similar)}"
