"""A classifier as something to look into: logits, and every layer's input and output, those of nested models too.

Keras hands out inner values only of a model's own layers, and not in the graph that the model is part of. So the graph is
run again here, operation by operation. The one private call of Keras that it takes stands in `replayed` and nowhere
else; a test holds it to the model's own answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from pipelines.errors import ConfigError, suggest
from service.inference.classifier import activation_of, class_count, head_of, last_operation

CONVOLUTIONS = {"Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose"}
UNCHANGED = {
    "Flatten",
    "Reshape",
    "Identity",
    "Dropout",
    "SpatialDropout2D",
    "AlphaDropout",
    "GaussianNoise",
    "GaussianDropout",
}
FIXING = {
    "Flatten",
    "Reshape",
    "Dense",
    "CenterCrop",
    "RandomCrop",
    "Resizing",
}  # what ties a model to one size
SQUASHES = {"linear": tf.identity, "softmax": tf.nn.softmax, "sigmoid": tf.sigmoid}
BFLOAT16 = "mixed_bfloat16"
SHRINKING = {"MaxPooling2D", "AveragePooling2D", "ZeroPadding2D", "Cropping2D"}

Step = Callable[[str, Any, tuple[Any, ...], dict[str, Any]], Any]


@dataclass(frozen=True)
class Tap:
    """A layer whose values can be looked at.

    Attributes:
        name: Of the layer; layers of a nested model carry its name before a slash. Where a layer runs again, `name:2`.
        kind: Its class.
        shape: Of its output for one image: `(H, W, C)` or `(units,)`.
        operation: The layer or operation of Keras.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    operation: Any = field(compare=False, repr=False)

    @property
    def is_map(self) -> bool:
        """Whether its output is `[B, H, W, C]`."""
        return len(self.shape) == 3

    @property
    def is_convolution(self) -> bool:
        """Whether it convolves feature maps."""
        return self.is_map and self.kind in CONVOLUTIONS


@dataclass(frozen=True)
class Trace:
    """What a batch went through.

    Attributes:
        logits: float32 `[B, K]`, K >= 2; their softmax is what the model answers. One unit z counts as (-z/2, z/2).
        operations: What ran, by the name of its tap, in order.
        inputs: What every operation was given first.
        outputs: What it made of it.
    """

    logits: Any
    operations: dict[str, Any]
    inputs: dict[str, Any]
    outputs: dict[str, Any]


class _Reached(Exception):  # noqa: N818 (no error)
    """The last layer that was to run has run."""


class Network:
    """A model of Keras layers, in inference mode, from pixels to logits.

    Args:
        model: Flat, Sequential or nested; ends in softmax, in one sigmoid unit, or in raw logits.
        scale: Factor on the pixels, 0 to 255, before they enter the model.
        fast: Compute in bfloat16, all but the last layer: twice as fast where the processor knows it, and less exact.

    Attributes:
        model: The model.
        scale: The factor.
        shape: Height, width and channels of the images.
        classes: How many classes it tells apart.
        taps: Its layers in the order in which they run; those that pass their input on as it is are left out.

    Raises:
        ConfigError: The model has another end.
    """

    def __init__(self, model: keras.Model, scale: float = 1.0, fast: bool = False) -> None:
        head_of(model)
        self.model, self.scale, self._fast = model, scale, fast
        self.shape: tuple[int, ...] = tuple(model.input_shape[1:])
        self.classes = class_count(model)
        self._end = last_operation(model)
        self._trace = self._traced()
        self.taps = self._discovered()

    def run(
        self, images: Any, seen: Callable[[str, Any], None] | None = None, until: str | None = None
    ) -> Trace:
        """Runs a batch.

        Args:
            images: Tensor `[B, H, W, C]`, 0 to 255.
            seen: Is given the name of every layer and its output before anything makes use of that.
            until: The last layer that runs; there are no logits then.
        """
        trace = Trace(None, {}, {}, {})

        def step(path: str, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            name, times = path, 1
            while name in trace.outputs:
                times += 1
                name = f"{path}:{times}"
            if operation is self._end:
                y = _unsquashed(operation, args, kwargs)
            else:
                with (
                    _with(operation, dtype_policy=BFLOAT16)
                    if self._fast and isinstance(operation, keras.Layer)
                    else nullcontext()
                ):
                    y = operation(*args, **kwargs)
            shown = SQUASHES[activation_of(operation)](y) if operation is self._end else y
            trace.operations[name], trace.inputs[name], trace.outputs[name] = (
                operation,
                args[0] if args else None,
                shown,
            )
            if seen is not None:
                seen(name, y)
            if name == until:
                raise _Reached
            return y

        if until is not None:
            with suppress(_Reached):
                replayed(self.model, tf.cast(images, tf.float32) * self.scale, step)
            return trace
        z = tf.cast(
            replayed(self.model, tf.cast(images, tf.float32) * self.scale, step), tf.float32
        )  # [B, units]
        logits = tf.concat([-z / 2, z / 2], axis=1) if z.shape[1] == 1 else z
        return Trace(logits, trace.operations, trace.inputs, trace.outputs)

    def compiled(
        self, function: Callable[..., Any], *more: tf.TensorSpec, size: tuple[int, int] | None = None
    ) -> Callable[..., Any]:
        """A function of images and other tensors as one graph, for batches of any length.

        Without XLA, which was measured five times slower for convolutions on a CPU.

        Args:
            function: Of tensors: first the images, float32 `[B, H, W, C]`.
            more: What the other tensors are.
            size: Of the images, where that is not the model's own.
        """
        images = tf.TensorSpec((None, *(size or self.shape[:2]), self.shape[2]), tf.float32)
        graph = tf.function(function, input_signature=[images, *more], autograph=False)
        return lambda images, *rest: graph(tf.cast(images, tf.float32), *rest)

    def tap(self, name: str) -> Tap:
        """The layer of that name.

        Raises:
            ConfigError: There is none.
        """
        found = {tap.name: tap for tap in self.taps}
        if name not in found:
            raise ConfigError("the name of a layer", f"layer={name}", suggest(name, found))
        return found[name]

    def is_elastic(self, name: str) -> bool:
        """Whether a layer, and all before it, can also run on images of another size."""
        before = list(self._trace.operations.values())[: list(self._trace.operations).index(name)]
        return not any(type(operation).__name__ in FIXING for operation in before)

    @property
    def convolutions(self) -> tuple[Tap, ...]:
        """Its convolutions, in order."""
        return tuple(tap for tap in self.taps if tap.is_convolution)

    @property
    def last_map(self) -> Tap | None:
        """The last feature map before pools shrink it: after the last convolution with what belongs to it; None without convolutions."""
        first = next((place for place, tap in enumerate(self.taps) if tap.is_convolution), len(self.taps))
        maps = [
            tap
            for tap in self.taps[first:]
            if tap.is_map and tap.kind not in SHRINKING and max(tap.shape[:2]) > 1
        ]
        return maps[-1] if maps else None

    def _traced(self) -> Trace:
        """What runs, with shapes alone: nothing is computed."""
        traces: list[Trace] = []
        images = tf.TensorSpec((None, *self.shape), tf.float32)
        tf.function(lambda x: traces.append(self.run(x)), autograph=False).get_concrete_function(images)
        return traces[0]

    def _discovered(self) -> tuple[Tap, ...]:
        taps = []
        for name, y in self._trace.outputs.items():
            operation = self._trace.operations[name]
            kind = type(operation).__name__
            if getattr(y, "ndim", 0) in (2, 4) and kind not in UNCHANGED and not kind.startswith("Random"):
                taps.append(Tap(name, kind, tuple(y.shape[1:]), operation))
        return tuple(taps)


def replayed(model: keras.Model, x: Any, step: Step, path: str = "") -> Any:
    """Runs a model's graph again, operation by operation, and those of nested models in their place.

    Args:
        model: Sequential or functional.
        x: Its input.
        step: Runs one operation in inference mode: is given its path, itself, and its arguments.
        path: What stands before names of this model.

    Returns:
        The model's output.
    """

    def operate(operation: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if isinstance(operation, keras.Model) and hasattr(operation, "layers"):
                return replayed(operation, args[0], step, f"{path}{operation.name}/")
            if "training" in inspect.signature(operation.call).parameters:
                kwargs["training"] = False
            return step(path + operation.name, operation, args, kwargs)

        return call

    if isinstance(model, keras.Sequential):
        for layer in model.layers:
            x = operate(layer)(x)
        return x
    return model._run_through_graph(x, operation_fn=operate)


def _unsquashed(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the last operation gives without its softmax or sigmoid."""
    if activation_of(operation) == "linear":
        return operation(*args, **kwargs)
    if not hasattr(operation, "activation"):
        return args[0]
    with _with(operation, activation=keras.activations.linear):
        return operation(*args, **kwargs)


@contextmanager
def _with(layer: Any, **attributes: Any) -> Iterator[None]:
    """Gives a layer other attributes for the length of a block, in which a graph is traced."""
    kept = {name: getattr(layer, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(layer, name, value)
        yield
    finally:
        for name, value in kept.items():
            setattr(layer, name, value)
