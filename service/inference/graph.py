"""Runs the graph of a Keras model operation by operation, or only what precedes its first weights.

Keras gives access to the outputs of a model's direct layers only, not to those of nested models. The graph is
therefore replayed here. This requires one private method of Keras, called only in `replay_graph`; a test
compares the result with the output of the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import keras

from pipelines.errors import ConfigError

ACTIVATION_LAYERS = {"Softmax", "Sigmoid"}
# Layers after the head that only drop, reshape or pass on its values.
PASS_THROUGH_LAYERS = {"Dropout", "Flatten", "Identity", "InputLayer", "Reshape"}
# Runs one operation: its path, the operation, its positional and its keyword arguments, to its output.
RunOperation = Callable[[str, Any, tuple[Any, ...], dict[str, Any]], Any]


class _FirstWeightsReached(Exception):  # noqa: N818 (control flow, not an error)
    """Ends the replay at the first layer with a kernel."""


def replay_graph(model: keras.Model, x: Any, run_operation: RunOperation, prefix: str = "") -> Any:
    """Replays a model's graph, operation by operation, nested models included.

    Args:
        model: A functional or Sequential model.
        x: Input of the model.
        run_operation: Runs one operation in inference mode, given its path, itself and its arguments.
        prefix: Path of this model, before the names of its operations.

    Returns:
        The output of the model.
    """

    def wrap(operation: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if isinstance(operation, keras.Model) and hasattr(operation, "layers"):
                return replay_graph(operation, args[0], run_operation, f"{prefix}{operation.name}/")
            if "training" in inspect.signature(operation.call).parameters:
                kwargs["training"] = False
            # Only within a scope may the name of an operation of TensorFlow begin with an underscore.
            with keras.name_scope("replay"):
                return run_operation(prefix + operation.name, operation, args, kwargs)

        return call

    if isinstance(model, keras.Sequential):
        for layer in model.layers:
            x = wrap(layer)(x)
        return x
    return model._run_through_graph(x, operation_fn=wrap)


def run_to_first_weights(model: keras.Model, x: Any) -> tuple[Any, str]:
    """Runs a batch up to the first layer with a kernel, and returns what that layer receives.

    Layers whose weights are one value per channel do not end the run: batch normalization and Normalization
    hold the statistics of the images that the model was trained on, and so reveal their range.

    Args:
        model: A functional or Sequential model.
        x: float32 `[B, H, W, C]`.

    Returns:
        The input of that layer, or of the last operation if no layer has a kernel; and the layer's name.
    """
    received: list[tuple[Any, str]] = []

    def run_operation(path: str, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = keras.tree.flatten(args)
        if inputs:
            received.append((inputs[0], path))
        if not _has_values_per_channel(operation, inputs):
            raise _FirstWeightsReached
        return operation(*args, **kwargs)

    with suppress(_FirstWeightsReached):
        replay_graph(model, x, run_operation)
    return received[-1]


def run_with_features(model: keras.Model, x: Any) -> tuple[Any, Any, str]:
    """Runs a batch through a model, and returns its output with what the last layer with a kernel receives.

    Args:
        model: A functional or Sequential model.
        x: float32 `[B, H, W, C]`.

    Returns:
        The output of the model; the input of its last layer with a kernel, or of its last operation if no
        layer has one; and the path of that layer.
    """
    received: list[tuple[Any, str]] = []
    is_kernel_reached = False

    def run_operation(path: str, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal is_kernel_reached
        inputs = keras.tree.flatten(args)
        has_kernel = not _has_values_per_channel(operation, inputs)
        if inputs and (has_kernel or not is_kernel_reached):
            received.append((inputs[0], path))
        is_kernel_reached = is_kernel_reached or has_kernel
        return operation(*args, **kwargs)

    output = replay_graph(model, x, run_operation)
    features, path = received[-1]
    return output, features, path


def _has_values_per_channel(operation: Any, inputs: list[Any]) -> bool:
    """Tells whether all weights of an operation, if it has any, are vectors of one value per channel."""
    weights = getattr(operation, "weights", None) or []
    if not weights:
        return True
    channels = inputs[0].shape[-1]
    return all(tuple(weight.shape) in ((), (1,), (channels,)) for weight in weights)


def last_operation(model: keras.Model) -> Any:
    """Returns the last operation that changes values; later ones only drop, reshape or pass them on."""
    for operation in reversed(list(_iterate_operations(model))):
        if type(operation).__name__ not in PASS_THROUGH_LAYERS:
            return operation
    raise ConfigError("a model with layers", f"model={model.name} (empty)", "use a classifier")


def activation_name(operation: Any) -> str:
    """Returns the name of the activation that an operation ends with or is; `linear` without one."""
    if type(operation).__name__ in ACTIVATION_LAYERS:
        return type(operation).__name__.lower()
    activation = getattr(operation, "activation", None)
    if activation is None:
        return "linear"
    return getattr(activation, "__name__", type(operation).__name__)


def _iterate_operations(model: keras.Model) -> Iterator[Any]:
    """Yields every operation in graph order, those of nested models in their place."""
    for operation in getattr(model, "operations", None) or model.layers:
        if isinstance(operation, keras.Model):
            yield from _iterate_operations(operation)
        else:
            yield operation
