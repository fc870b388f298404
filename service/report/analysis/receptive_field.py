"""Receptive fields: the pixels of the input that each position of a feature map depends on.

The arithmetic is that of Araujo, Norris and Sim (2019), "Computing receptive fields of convolutional neural
networks", Distill: size, stride and position of the field are followed from layer to layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from service.inference.graph import replay_graph
from service.report.analysis.network import PASS_THROUGH_KINDS, Network, make_unique

Floats = NDArray[np.floating]

# Layers that compute every position from the same position of their inputs. Normalization counts as such,
# although the statistics of some kinds are those of the whole image.
POINTWISE_LAYERS = PASS_THROUGH_KINDS | {
    "Activation",
    "Add",
    "Average",
    "BatchNormalization",
    "Concatenate",
    "Dense",
    "ELU",
    "GroupNormalization",
    "LayerNormalization",
    "LayerScale",
    "LeakyReLU",
    "Maximum",
    "Minimum",
    "Multiply",
    "Normalization",
    "PReLU",
    "RMSNormalization",
    "ReLU",
    "Rescaling",
    "Softmax",
    "StochasticDepth",
    "Subtract",
    "UnitNormalization",
}
# Operations of `keras.ops` that combine different positions.
MIXING_OPERATIONS = {"Max", "Mean", "Min", "Sum", "Transpose", "Roll", "Matmul", "Einsum"}

Pair = tuple[float, float]  # a value for rows and one for columns


@dataclass(frozen=True)
class ReceptiveField:
    """The receptive fields of a feature map, in pixels of the input.

    Attributes:
        size: Height and width of the field of one position.
        stride: Distance between the fields of neighbouring positions, down and across.
        start: Top and left edge of the field of position (0, 0); negative where the padding is part of it.
        is_global: Whether a position also depends on the whole image, through attention or through an average
            over the image (squeeze and excitation); the field is then that of the other paths.
    """

    size: Pair
    stride: Pair
    start: Pair
    is_global: bool = False

    def window(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Returns top, left, bottom and right edge of the field of a position, in whole pixels.

        The edges may lie outside the image, where the field is padding.
        """
        top = self.start[0] + row * self.stride[0]
        left = self.start[1] + column * self.stride[1]
        bottom = top + self.size[0]
        right = left + self.size[1]
        return int(np.floor(top)), int(np.floor(left)), int(np.ceil(bottom)), int(np.ceil(right))


@dataclass(frozen=True)
class _Map:
    """A tensor on its way through the graph: its grid of positions, and their fields.

    A tensor without positions, such as the average over the image, has one position that sees everything.

    Attributes:
        grid: Rows and columns, int `[2]`.
        size: Height and width of a field, float `[2]`; this and the next as in `ReceptiveField`.
        stride: Distance between fields, float `[2]`.
        start: Top and left edge of the first field, float `[2]`.
        is_global: Whether a position also depends on the whole image.
        is_flat: Whether all positions are in one vector.
    """

    grid: NDArray[np.int64]
    size: Floats
    stride: Floats
    start: Floats
    is_global: bool = False
    is_flat: bool = False


def compute_receptive_fields(network: Network) -> dict[str, ReceptiveField]:
    """Computes the receptive fields of all feature maps, tokens included.

    The network computes nothing: its graph is replayed on fields instead of tensors.

    Args:
        network: The network under analysis.

    Returns:
        The fields by name of the layer, for every layer of `network.layers` with a feature map. Where a layer
        of unknown kind changes the grid, its positions divide the image evenly and are `is_global`.
    """
    sides = np.array(network.shape[:2])
    maps: dict[str, _Map] = {}

    def run_operation(path: str, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = [value for value in keras.tree.flatten((args, kwargs)) if isinstance(value, _Map)]
        result = _follow(operation, inputs, sides)
        maps[make_unique(path, maps)] = result
        return result

    replay_graph(network.model, _Map(sides, np.ones(2), np.ones(2), np.zeros(2)), run_operation)
    fields = {}
    for layer in network.layers:
        if layer.is_feature_map:
            result = maps[layer.name]
            if tuple(result.grid) != layer.shape[:2]:
                result = _spread(sides, np.array(layer.shape[:2]))
            fields[layer.name] = _to_field(result)
    return fields


def _to_field(result: _Map) -> ReceptiveField:
    return ReceptiveField(
        size=(float(result.size[0]), float(result.size[1])),
        stride=(float(result.stride[0]), float(result.stride[1])),
        start=(float(result.start[0]), float(result.start[1])),
        is_global=result.is_global,
    )


def _see_everything(sides: NDArray[np.int64]) -> _Map:
    """Returns the one position that sees an image of these sides."""
    return _Map(np.ones(2, int), sides.astype(float), sides.astype(float), np.zeros(2))


def _spread(sides: NDArray[np.int64], grid: NDArray[np.int64]) -> _Map:
    """Divides an image evenly into the cells of a grid."""
    return _Map(grid, sides / grid, sides / grid, np.zeros(2), is_global=True)


def _follow(operation: Any, inputs: list[_Map], sides: NDArray[np.int64]) -> _Map:
    """Computes the fields of an operation's output from those of its inputs."""
    kind = type(operation).__name__
    if not inputs or (kind.startswith("Global") and "Pooling" in kind):
        return _see_everything(sides)
    if kind in RULES:
        return RULES[kind](operation, inputs[0])
    merged = _merge(inputs)
    if kind == "Flatten":
        return replace(merged, is_flat=True)
    if kind == "Reshape":
        return replace(merged, is_flat=False)
    if kind == "Dense" and merged.is_flat:
        return _see_everything(sides)
    return merged if _is_pointwise(operation, kind) else replace(merged, is_global=True)


def _is_pointwise(operation: Any, kind: str) -> bool:
    """Tells whether an operation computes every position from the same position of its inputs."""
    if kind == "EinsumDense":
        inputs, _, output = operation.equation.partition("->")
        positions = inputs.split(",")[0][:-1]  # all axes but that of the channels
        return all(axis in output for axis in positions)
    if isinstance(operation, keras.Layer):
        return kind in POINTWISE_LAYERS or kind.startswith("Random")
    return kind not in MIXING_OPERATIONS


def _merge(inputs: list[_Map]) -> _Map:
    """Merges inputs of an operation: the union of the fields of those with the finest grid.

    Inputs with a coarser grid are repeated over the finer one; they bring in the whole image.
    """
    grid = max((value.grid for value in inputs), key=np.prod)
    fine = [value for value in inputs if (value.grid == grid).all()]
    start = np.min([value.start for value in fine], axis=0)
    end = np.max([value.start + value.size for value in fine], axis=0)
    is_global = any(value.is_global for value in inputs) or len(fine) < len(inputs)
    return replace(fine[0], start=start, size=end - start, is_global=is_global)


def _slide(value: _Map, window: Any, strides: Any, padding: str, dilation: Any = 1) -> _Map:
    """Follows a window that slides over the grid, as in convolutions and poolings."""
    reach = (np.broadcast_to(window, 2) - 1) * np.broadcast_to(dilation, 2)  # from first to last position
    strides = np.broadcast_to(strides, 2)
    if padding == "same":
        grid = -(-value.grid // strides)
        before = np.maximum((grid - 1) * strides + reach + 1 - value.grid, 0) // 2
    else:
        grid = (value.grid - reach - 1) // strides + 1
        before = np.zeros(2, int)
    return replace(
        value,
        grid=grid,
        size=value.size + reach * value.stride,
        stride=value.stride * strides,
        start=value.start - before * value.stride,
    )


def _convolve(operation: Any, value: _Map) -> _Map:
    return _slide(value, operation.kernel_size, operation.strides, operation.padding, operation.dilation_rate)


def _pool(operation: Any, value: _Map) -> _Map:
    return _slide(value, operation.pool_size, operation.strides, operation.padding)


def _pad(operation: Any, value: _Map) -> _Map:
    padding = np.array(operation.padding)  # [[top, bottom], [left, right]]
    return replace(
        value, grid=value.grid + padding.sum(axis=1), start=value.start - padding[:, 0] * value.stride
    )


def _crop(operation: Any, value: _Map) -> _Map:
    cropping = np.array(operation.cropping)
    return replace(
        value, grid=value.grid - cropping.sum(axis=1), start=value.start + cropping[:, 0] * value.stride
    )


def _repeat(operation: Any, value: _Map) -> _Map:
    """Follows UpSampling2D: output n is input n // factor, which lies up to a step minus one cell before."""
    factor = np.array(operation.size)
    lag = (factor - 1) / factor * value.stride
    return replace(
        value,
        grid=value.grid * factor,
        size=value.size + lag,
        stride=value.stride / factor,
        start=value.start - lag,
    )


def _convolve_transposed(operation: Any, value: _Map) -> _Map:
    """Follows Conv2DTranspose: output n sees the inputs from (n + p - k + 1) / s to (n + p) / s."""
    window = np.array(operation.kernel_size)
    strides = np.array(operation.strides)
    surplus = np.maximum(window - strides, 0)
    is_same = operation.padding == "same"
    before = surplus // 2 if is_same else np.zeros(2, int)
    return replace(
        value,
        grid=value.grid * strides + (0 if is_same else surplus),
        size=value.size + (window - 1) / strides * value.stride,
        stride=value.stride / strides,
        start=value.start + (before - window + 1) / strides * value.stride,
    )


def _resize(operation: Any, value: _Map) -> _Map:
    """Follows Resizing: bilinear, the neighbours of position (n + 1/2) * factor - 1/2."""
    grid = np.array([operation.height, operation.width])
    factor = value.grid / grid
    return replace(
        value,
        grid=grid,
        size=value.size + 2 * value.stride,
        stride=value.stride * factor,
        start=value.start + (factor / 2 - 1.5) * value.stride,
    )


RULES: dict[str, Callable[[Any, _Map], _Map]] = {
    "Conv2D": _convolve,
    "DepthwiseConv2D": _convolve,
    "SeparableConv2D": _convolve,
    "Conv2DTranspose": _convolve_transposed,
    "MaxPooling2D": _pool,
    "AveragePooling2D": _pool,
    "ZeroPadding2D": _pad,
    "Cropping2D": _crop,
    "UpSampling2D": _repeat,
    "Resizing": _resize,
}
