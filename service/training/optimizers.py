"""The optimizer a recipe names, and which weights it trains.

Patterns of layers are shell-style. One without a slash is held against the name of a layer at whatever depth (`block5*`), one with a slash
against the path from the model on (`backbone/block5*`). A nested model that matches stands for all it holds. `*` also spans slashes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

import keras

from pipelines.errors import ConfigError
from service.recipe import NO_DECAY, OptimizerSpec

_KINDS = {
    "sgd": keras.optimizers.SGD,
    "rmsprop": keras.optimizers.RMSprop,
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "lamb": keras.optimizers.Lamb,
    "lion": keras.optimizers.Lion,
}
_PASSED_ON = ("momentum", "nesterov", "beta_1", "beta_2", "epsilon", "weight_decay")


def make_optimizer(spec: OptimizerSpec, variables: Sequence[keras.Variable]) -> keras.Optimizer:
    """The Keras optimizer that a spec names, not built yet. Call it inside the strategy's scope.

    Its `learning_rate` is a variable to be assigned before each update. It never clips: `spec.clip_norm` is for the sum over the replicas.

    Args:
        spec: What to make.
        variables: What it will train; those whose path matches `spec.no_decay` are not decayed.
    """
    settings = {name: getattr(spec, name) for name in _PASSED_ON if getattr(spec, name)}
    if spec.name == "adamw" and spec.weight_decay is not None:
        settings["weight_decay"] = spec.weight_decay  # a 0 has to be said, for Keras decays by 0.004
    optimizer = _KINDS[spec.name](
        float(spec.learning_rate), name=spec.name, **settings
    )  # named, or the second of a process is `adam_1`
    optimizer.exclude_from_weight_decay(
        var_list=[v for v in variables if any(fnmatchcase(v.path, pattern) for pattern in spec.no_decay)]
    )
    return optimizer


def check_no_decay(spec: OptimizerSpec, model: keras.Model) -> None:
    """Refuses a pattern of variables that fits none of a model's; the default ones need not fit.

    Raises:
        ConfigError: Naming the nearest paths.
    """
    paths = [v.path for v in model.weights]
    for pattern in spec.no_decay:
        if pattern not in NO_DECAY and not any(fnmatchcase(path, pattern) for path in paths):
            raise ConfigError(
                "a pattern of the paths of variables",
                f"optimizer.no_decay={pattern}",
                _nearest(pattern, paths),
            )


def trainable_variables(
    model: keras.Model, freeze: Sequence[str], train: Sequence[str] = ()
) -> list[keras.Variable]:
    """Freezes layers by name, thaws all others, and returns the weights that are left to learn.

    Only the patterns decide: a layer that its builder had frozen learns too unless they name it. A frozen layer has `trainable`
    off, so that a frozen BatchNormalization uses its stored statistics and leaves them as they are. Compile steps afterwards.

    Args:
        model: Layers may be models themselves.
        freeze: Patterns of the layers that do not learn.
        train: Patterns of layers that do, though frozen otherwise.

    Returns:
        In the order of the model.

    Raises:
        ConfigError: A pattern that fits no layer, or nothing left to learn.
    """
    layers = dict(_layers(model))
    for key, patterns in (("freeze", freeze), ("train", train)):
        for pattern in patterns:
            if not any(matches(pattern, path) for path in layers):
                raise ConfigError(
                    f"a pattern of the layers of {model.name}", f"{key}={pattern}", _nearest(pattern, layers)
                )
    for on in (
        False,
        True,
    ):  # off first: where nothing changes, Keras does not pass it on to the layers below
        model.trainable = on
    for path, layer in layers.items():
        if _any(freeze, path) and not _any(train, path):
            layer.trainable = False
    weights = list(model.trainable_variables)
    if not weights:
        received = f"freeze={', '.join(freeze)} (all of {model.name})"
        raise ConfigError(
            "a layer that learns", received, "freeze fewer layers, or name those that learn in train"
        )
    return weights


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern fits a layer or a model that holds it.

    Args:
        pattern: Shell-style; see the head of this file.
        path: Names from the model on, with slashes between them.
    """
    names = path.split("/")
    if "/" not in pattern:
        return any(fnmatchcase(name, pattern) for name in names)
    return any(fnmatchcase("/".join(names[: depth + 1]), pattern) for depth in range(len(names)))


def _any(patterns: Iterable[str], path: str) -> bool:
    return any(matches(pattern, path) for pattern in patterns)


def _layers(model: keras.Model, above: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Paths and layers; instead of a nested model, what it holds."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer, f"{above}{layer.name}/")
        else:
            yield above + layer.name, layer


def _nearest(pattern: str, names: Iterable[str]) -> str:
    """Words a fix for a pattern that fits nothing."""
    return "use " + " or ".join(difflib.get_close_matches(pattern.strip("*"), sorted(names), n=3, cutoff=0.0))
