"""Gives reports access to the logits of a classifier, and to the input and output of every layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from pipelines.errors import ConfigError, suggest
from service.inference.classifier import class_count
from service.inference.graph import activation_name, last_operation, replay_graph
from service.inference.inspection import decide_head
from service.inference.interpretation import Head, PixelTransform
from service.inference.tracing import trace_once

CONVOLUTION_KINDS = {"Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose"}
# Operations whose output is their input, at most in another shape; they are not listed as layers.
PASS_THROUGH_KINDS = {
    "Flatten",
    "Reshape",
    "Identity",
    "Dropout",
    "SpatialDropout2D",
    "AlphaDropout",
    "GaussianNoise",
    "GaussianDropout",
}
# Operations that tie a model to one image size.
FIXED_SIZE_KINDS = {"Flatten", "Reshape", "Dense", "CenterCrop", "RandomCrop", "Resizing"}
# Layers that only change the size of feature maps.
RESIZING_KINDS = {"MaxPooling2D", "AveragePooling2D", "ZeroPadding2D", "Cropping2D"}
# Final activations by the name of `activation_name`.
ACTIVATIONS = {"softmax": tf.nn.softmax, "sigmoid": tf.sigmoid}
SMALLEST_PROBABILITY = 1e-7  # of which the logarithm is taken
BFLOAT16_POLICY = "mixed_bfloat16"
PROBE_BATCH = 3  # images of the symbolic trace; outputs of another length are not one per image
MAX_EXTRA_TOKENS = 5  # tokens in front of those of the patches: class, distillation, registers
ATTENTION_KINDS = {"MultiHeadAttention", "GroupedQueryAttention"}


@dataclass(frozen=True)
class LayerInfo:
    """A layer with an output that can be analysed.

    The tokens of a transformer are analysed as a feature map of the patches that they belong to.

    Attributes:
        name: Path of the layer: the names of the nested models it is in, and its own. The second run of a
            shared layer is called `name:2`.
        kind: Class name of the layer, such as `Conv2D`.
        shape: Shape of the output for one image: `(H, W, C)` or `(units,)`.
        operation: The Keras layer or operation.
        extra_tokens: Number of tokens in front of those of the patches, which belong to no place in the
            image; None if the output is not a sequence of tokens.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    operation: Any = field(compare=False, repr=False)
    extra_tokens: int | None = None

    @property
    def is_feature_map(self) -> bool:
        """Whether the output is `[B, H, W, C]`, or tokens that can be arranged so."""
        return len(self.shape) == 3

    @property
    def has_tokens(self) -> bool:
        """Whether the output is a sequence of tokens, `[B, T, C]`."""
        return self.extra_tokens is not None

    def arrange(self, output: Any) -> Any:
        """Arranges tokens `[B, T, C]` as a feature map `[B, H, W, C]`; returns other outputs unchanged."""
        if self.extra_tokens is None:
            return output
        return tf.reshape(output[:, self.extra_tokens :], (-1, *self.shape))

    @property
    def is_convolution(self) -> bool:
        """Whether the layer convolves feature maps."""
        return self.is_feature_map and self.kind in CONVOLUTION_KINDS


@dataclass(frozen=True)
class Trace:
    """Inputs and outputs of all operations for a batch.

    Attributes:
        logits: float32 `[B, K]`, K >= 2; the model's probabilities are their softmax. A single unit z counts
            as the logits (-z/2, z/2).
        operations: Operations by name, in the order in which they ran.
        inputs: First argument of every operation, by its name.
        outputs: Output of every operation, by its name.
        attention: Attention weights of every attention layer, `[B, heads, queries, keys]`, by its name; only
            if they were requested.
    """

    logits: Any
    operations: dict[str, Any]
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    attention: dict[str, Any] = field(default_factory=dict)


class _StopForwardPass(Exception):  # noqa: N818 (control flow, not an error)
    """Stops the forward pass after the last requested operation."""


class Network:
    """A Keras classifier in inference mode, from pixels to logits.

    Args:
        model: A functional or Sequential model, possibly nested, whose outputs are probabilities or logits.
        scale: Factor on the pixels, 0 to 255, before they enter the model.
        offset: Summand after that multiplication.
        head: Whether the outputs are probabilities or logits; None decides it from the outputs.
        fast: Whether all layers but the last compute in bfloat16: up to twice as fast on processors that
            support it, and less exact.

    Attributes:
        model: The Keras model itself.
        pixels: Map from pixels of 0 to 255 to the input of the model.
        head: Whether the outputs of the model are probabilities or logits.
        shape: Height, width and channels of the images.
        class_count: Number of classes.
        has_one_unit: Whether the output is a single unit, whose sign decides between two classes.
        symbolic_trace: Inputs and outputs of all operations as tensors without values, for `PROBE_BATCH`
            images.
        layers: Layers in the order in which they run, without those that pass their input on unchanged.

    Raises:
        ConfigError: The model has another kind of output.
    """

    def __init__(
        self,
        model: keras.Model,
        scale: float = 1.0,
        fast: bool = False,
        *,
        offset: float = 0.0,
        head: Head | None = None,
    ) -> None:
        self.model = model
        self.pixels = PixelTransform(scale, offset)
        self.head: Head = head or decide_head(model)[0]
        self._fast = fast
        self.shape: tuple[int, ...] = tuple(model.input_shape[1:])
        self.class_count = class_count(model)
        self.has_one_unit = model.output_shape[1] == 1
        self._last_operation = last_operation(model)
        self._removes_activation = self.head == "probabilities" and _ends_in_its_activation(model)
        self.symbolic_trace = self._trace_symbolically()
        self.layers = self._list_layers()

    @property
    def convolutions(self) -> tuple[LayerInfo, ...]:
        """The convolutions, in the order in which they run."""
        return tuple(layer for layer in self.layers if layer.is_convolution)

    @property
    def last_feature_map(self) -> LayerInfo | None:
        """The last feature map of full resolution; None without convolutions and tokens.

        That is the output of the last convolution, or of an activation or the like between it and pooling. Of
        a transformer it is the last layer of tokens; with a class token, the one before the last attention,
        because only the class token reaches the logits from there on.
        """
        first = next((layer for layer in self.layers if layer.is_convolution or layer.has_tokens), None)
        if first is None:
            return None
        feature_maps = [
            layer
            for layer in self.layers[self.layers.index(first) :]
            if layer.is_feature_map and layer.kind not in RESIZING_KINDS and max(layer.shape[:2]) > 1
        ]
        if not feature_maps:
            return None
        last = feature_maps[-1]
        if not last.extra_tokens:
            return last
        kinds = [layer.kind in ATTENTION_KINDS for layer in feature_maps]
        if not any(kinds):
            return last
        attention = len(kinds) - 1 - kinds[::-1].index(True)
        return feature_maps[max(attention - 1, 0)]

    @property
    def block_outputs(self) -> tuple[LayerInfo, ...]:
        """The layers that a heatmap can be computed for: convolutions, and sums of the tokens of a block."""
        return tuple(
            layer
            for layer in self.layers
            if layer.is_convolution or (layer.has_tokens and layer.kind == "Add")
        )

    def find_layer(self, name: str) -> LayerInfo:
        """Returns the layer of that name.

        Raises:
            ConfigError: The network has no such layer.
        """
        by_name = {layer.name: layer for layer in self.layers}
        if name not in by_name:
            raise ConfigError("the name of a layer", f"layer={name}", suggest(name, by_name))
        return by_name[name]

    def runs_without_activation(self, operation: Any) -> bool:
        """Tells whether `run` leaves out the activation of an operation: of the last one, for the logits."""
        return operation is self._last_operation and self._removes_activation

    def is_size_independent(self, name: str) -> bool:
        """Tells whether a layer, and all before it, can also run on images of another size."""
        for other, operation in self.symbolic_trace.operations.items():
            if other == name:
                return True
            if type(operation).__name__ in FIXED_SIZE_KINDS:
                return False
        raise KeyError(name)

    def run(
        self,
        images: Any,
        on_output: Callable[[str, Any], None] | None = None,
        stop_after: str | None = None,
        with_attention: bool = False,
        replacements: Mapping[str, Any] | None = None,
    ) -> Trace:
        """Runs a batch.

        Args:
            images: Tensor `[B, H, W, C]`, 0 to 255.
            on_output: Called with the name and the output of every operation, before the output is used.
            stop_after: Name of the last operation that runs; None runs all. The trace has no logits then.
            with_attention: Whether the trace contains the attention weights.
            replacements: Outputs by name of the operation, which are used instead of running it. In a
                compiled graph, operations that only they would need are not computed.
        """
        trace = Trace(None, {}, {}, {})
        replacements = replacements or {}

        def run_operation(path: str, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            name = make_unique(path, trace.outputs)
            is_last = self.runs_without_activation(operation)
            if name in replacements:
                y = replacements[name]
            elif is_last:
                y = _run_without_activation(operation, args, kwargs)
            elif with_attention and type(operation).__name__ in ATTENTION_KINDS:
                y, weights = operation(*args, **kwargs, return_attention_scores=True)
                trace.attention[name] = weights
            else:
                with self._precision_of(operation):
                    y = operation(*args, **kwargs)
            trace.operations[name] = operation
            trace.inputs[name] = args[0] if args else None
            trace.outputs[name] = ACTIVATIONS[activation_name(operation)](y) if is_last else y
            if on_output is not None:
                on_output(name, y)
            if name == stop_after:
                raise _StopForwardPass
            return y

        pixels = self.pixels.apply(tf.cast(images, tf.float32))
        if stop_after is not None:
            with suppress(_StopForwardPass):
                replay_graph(self.model, pixels, run_operation)
            return trace
        z = tf.cast(replay_graph(self.model, pixels, run_operation), tf.float32)  # [B, units]
        if self.head == "probabilities" and not self._removes_activation:
            z = _invert_probabilities(z)
        logits = tf.concat([-z / 2, z / 2], axis=1) if z.shape[1] == 1 else z
        return Trace(logits, trace.operations, trace.inputs, trace.outputs, trace.attention)

    def compile_graph(
        self,
        function: Callable[..., Any],
        *extra_inputs: tf.TensorSpec,
        size: tuple[int, int] | None = None,
    ) -> Callable[..., Any]:
        """Compiles a function of images and other tensors to one graph, for batches of any length.

        Without XLA, which was measured five times slower for convolutions on a CPU.

        Args:
            function: Function of tensors, the first being the images, float32 `[B, H, W, C]`.
            extra_inputs: Shapes and types of the other tensors.
            size: Height and width of the images; None takes those of the model.
        """
        images = tf.TensorSpec((None, *(size or self.shape[:2]), self.shape[2]), tf.float32)
        graph = trace_once(function, images, *extra_inputs)
        return lambda images, *rest: graph(tf.cast(images, tf.float32), *rest)

    def _precision_of(self, operation: Any) -> Any:
        """Returns a context in which an operation computes in bfloat16 if the network is `fast`."""
        if self._fast and isinstance(operation, keras.Layer):
            return _override_attributes(operation, dtype_policy=BFLOAT16_POLICY)
        return nullcontext()

    def _trace_symbolically(self) -> Trace:
        """Traces a small batch, to get shapes without computing anything."""
        traces: list[Trace] = []
        images = tf.TensorSpec((PROBE_BATCH, *self.shape), tf.float32)
        graph = tf.function(lambda x: traces.append(self.run(x)), autograph=False)
        graph.get_concrete_function(images)
        return traces[0]

    def _list_layers(self) -> tuple[LayerInfo, ...]:
        layers = []
        grid: tuple[int, int] | None = None
        for name, y in self.symbolic_trace.outputs.items():
            operation = self.symbolic_trace.operations[name]
            kind = type(operation).__name__
            shape = tuple(getattr(y, "shape", ()))
            if not shape or shape[0] != PROBE_BATCH:
                continue
            if len(shape) == 4:
                grid = (shape[1], shape[2])
            if kind in PASS_THROUGH_KINDS or kind.startswith("Random"):
                continue
            if len(shape) in (2, 4):
                layers.append(LayerInfo(name, kind, shape[1:], operation))
            elif len(shape) == 3:
                layout = find_token_layout(shape[1], grid)
                if layout is not None:
                    height, width, extra = layout
                    layers.append(LayerInfo(name, kind, (height, width, shape[2]), operation, extra))
        return tuple(layers)


def find_token_layout(tokens: int, grid: tuple[int, int] | None) -> tuple[int, int, int] | None:
    """Finds the patches that the tokens of a transformer belong to.

    Args:
        tokens: Length of the sequence.
        grid: Height and width of the last feature map before it; None without one.

    Returns:
        Height and width in patches, and the number of tokens in front of those of the patches; None if the
        sequence has neither the size of the feature map nor that of a square.
    """
    for extra in range(min(MAX_EXTRA_TOKENS, tokens - 2) + 1):
        if grid is not None and grid[0] * grid[1] == tokens - extra:
            return (*grid, extra)
    for extra in (0, 1):
        side = math.isqrt(tokens - extra)
        if side > 1 and side * side == tokens - extra:
            return side, side, extra
    return None


def make_unique(path: str, names: dict[str, Any]) -> str:
    """Returns the path, or `path:2`, `path:3` and so on for further runs of a shared layer."""
    name = path
    run = 1
    while name in names:
        run += 1
        name = f"{path}:{run}"
    return name


def _ends_in_its_activation(model: keras.Model) -> bool:
    """Tells whether the outputs are softmax, or sigmoid of one unit, of logits inside the model."""
    operation = last_operation(model)
    function = getattr(operation, "activation", None)
    is_of_keras = type(operation).__module__.startswith("keras.")
    if function is not None:
        is_of_keras = is_of_keras and getattr(function, "__module__", "").startswith("keras.")
    expected = "sigmoid" if model.output_shape[1] == 1 else "softmax"
    return is_of_keras and activation_name(operation) == expected


def _invert_probabilities(probabilities: Any) -> Any:
    """Returns logits `[B, units]` whose softmax, or sigmoid for one unit, are given probabilities."""
    clipped = tf.clip_by_value(probabilities, SMALLEST_PROBABILITY, 1.0)
    if probabilities.shape[1] > 1:
        return tf.math.log(clipped)
    return tf.math.log(clipped) - tf.math.log(tf.clip_by_value(1 - probabilities, SMALLEST_PROBABILITY, 1.0))


def _run_without_activation(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs the last operation without its softmax or sigmoid."""
    if not hasattr(operation, "activation"):
        # The operation is nothing but the activation.
        return args[0]
    with _override_attributes(operation, activation=keras.activations.linear):
        return operation(*args, **kwargs)


@contextmanager
def _override_attributes(layer: Any, **attributes: Any) -> Iterator[None]:
    """Sets attributes of a layer within a block in which a graph is traced, and restores them after it."""
    originals = {name: getattr(layer, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(layer, name, value)
        yield
    finally:
        for name, value in originals.items():
            setattr(layer, name, value)
