"""Computes the outputs of every layer: feature maps as standardized uint8 tiles, vectors, and sparsity."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from service.report.analysis.network import LayerInfo, Network, Trace
from service.report.rasters import SHADES, compute_shrink_factor


class FeatureMapOutputs(NamedTuple):
    """Outputs of a layer with feature maps for N images.

    Attributes:
        tiles: uint8 `[N, h, w, C]`: channels standardized, shrunk to tiles and quantized to `SHADES` levels.
        mean_activation: float32 `[N, C]`: mean over all positions, negative values counted as 0.
        is_inactive: bool `[N, C]`, see `find_inactive_channels`.
        sparsity: float32 `[N]`: fraction of zeros among all values.
    """

    tiles: Any
    mean_activation: Any
    is_inactive: Any
    sparsity: Any


class VectorOutputs(NamedTuple):
    """Outputs of a layer without spatial dimensions for N images.

    Attributes:
        values: float32 `[N, units]`.
        sparsity: float32 `[N]`: fraction of zeros among the units.
    """

    values: Any
    sparsity: Any


LayerOutputs = FeatureMapOutputs | VectorOutputs


def compute_activations(network: Network, images: np.ndarray) -> dict[str, LayerOutputs]:
    """Computes the outputs of all layers.

    Args:
        network: The network under analysis.
        images: Images `[N, H, W, C]`, pixel values 0 to 255.

    Returns:
        Outputs by layer name, in the order in which the layers run; NumPy arrays.
    """
    graph = network.compile_graph(lambda x: collect_layer_outputs(network, network.run(x)))
    outputs: dict[str, LayerOutputs] = tf.nest.map_structure(lambda t: t.numpy(), graph(images))
    # tf.nest sorts dictionaries by key.
    return {layer.name: outputs[layer.name] for layer in network.layers}


def collect_layer_outputs(network: Network, trace: Trace) -> dict[str, LayerOutputs]:
    """Collects the outputs of all layers from a trace, by layer name; called in the graph that runs it."""
    outputs = {}
    for layer in network.layers:
        values = tf.cast(layer.arrange(trace.outputs[layer.name]), tf.float32)
        outputs[layer.name] = _collect_layer(layer, values)
    return outputs


def _collect_layer(layer: LayerInfo, values: tf.Tensor) -> LayerOutputs:
    sparsity = compute_sparsity(values)
    if not layer.is_feature_map:
        return VectorOutputs(values, sparsity)
    height, width, _ = layer.shape
    if height * width == 1:  # the only position of a channel is compared with the other channels
        mean, variance = tf.nn.moments(values, axes=3, keepdims=True)
        levels = standardize_channels(values, mean, tf.sqrt(variance))
    else:
        levels = standardize_channels(values)
    tiles = quantize_channels(levels, compute_shrink_factor(height, width))
    mean_activation = tf.reduce_mean(tf.nn.relu(values), axis=(1, 2))
    return FeatureMapOutputs(tiles, mean_activation, find_inactive_channels(values), sparsity)


def compute_sparsity(values: tf.Tensor) -> tf.Tensor:
    """Computes the fraction of zeros in each image's values: `[B, ...]` to float32 `[B]`."""
    return tf.reduce_mean(tf.cast(values == 0, tf.float32), axis=range(1, values.ndim))


def standardize_channels(values: Any, mean: Any = None, deviation: Any = None) -> tf.Tensor:
    """Brings every channel to mean 128 and standard deviation 64, clipped to 0..255 (F. Chollet, 2017).

    Args:
        values: Feature maps, float `[B, H, W, C]`.
        mean: Mean of the channels, broadcastable to `values`; None computes it for each image and channel.
        deviation: Standard deviation of the channels, as for `mean`.

    Returns:
        float32 `[B, H, W, C]`; 128 where a channel is constant.
    """
    if mean is None or deviation is None:
        mean, variance = tf.nn.moments(values, axes=(1, 2), keepdims=True)
        deviation = tf.sqrt(variance)
    scale = tf.math.divide_no_nan(64.0, deviation)
    levels = values * scale + (128.0 - mean * scale)
    # One pass over many values: `tf.clip_by_value` takes two.
    return tf.raw_ops.ClipByValue(t=levels, clip_value_min=0.0, clip_value_max=255.0)


def standardize_vector(values: np.ndarray) -> np.ndarray:
    """Standardizes the units of a vector like the positions of a channel: `[units]` to uint8 `[units]`."""
    as_channel = tf.constant(values, tf.float32)[None, :, None, None]  # [1, units, 1, 1]
    levels = standardize_channels(as_channel).numpy().reshape(-1)
    return np.asarray(np.rint(levels), np.uint8)


def find_inactive_channels(values: Any) -> tf.Tensor:
    """Finds channels that show nothing: constant over all positions, or zero in a map of one position.

    Channels that are negative throughout are not inactive: only an activation function could make them zero.

    Args:
        values: Feature maps, float `[B, H, W, C]`.

    Returns:
        bool `[B, C]`; True for channels with NaN.
    """
    highest = tf.reduce_max(values, axis=(1, 2))
    lowest = tf.reduce_min(values, axis=(1, 2))
    # Written so that channels with NaN count as inactive.
    if values.shape[1] * values.shape[2] == 1:
        return ~((highest > 0) | (highest < 0))
    return ~(highest > lowest)


def quantize_channels(levels: Any, shrink: int) -> tf.Tensor:
    """Shrinks standardized channels to the size of tiles and quantizes them to `SHADES` levels, in the graph.

    Args:
        levels: float32 `[B, H, W, C]`, 0 to 255.
        shrink: Side of the square blocks that are averaged, in pixels.

    Returns:
        uint8 `[B, ceil(H / shrink), ceil(W / shrink), C]`, 0 to `SHADES - 1`.
    """
    if shrink > 1:
        levels = _average_blocks(levels, shrink)
    return tf.cast(tf.round(levels * ((SHADES - 1) / 255)), tf.uint8)


def _average_blocks(values: tf.Tensor, factor: int) -> tf.Tensor:
    """Averages blocks `[factor, factor]` of `[B, H, W, C]`; the last blocks are filled with the edge."""
    for axis in (1, 2):
        size = [factor if axis == spatial else 1 for spatial in (1, 2)]
        averages = tf.nn.avg_pool2d(values, size, size, "VALID")
        rest = values.shape[axis] % factor
        if rest:
            last = tf.gather(values, range(values.shape[axis] - rest, values.shape[axis]), axis=axis)
            edge = tf.gather(last, [rest - 1], axis=axis)
            last = (tf.reduce_sum(last, axis, keepdims=True) + (factor - rest) * edge) / factor
            averages = tf.concat([averages, last], axis)
        values = averages
    return values


def summarize_layer(layer: LayerInfo, outputs: LayerOutputs, count: int) -> dict[str, Any]:
    """Summarizes a layer's outputs for the first `count` images.

    Returns:
        Name, kind and shape of the layer, fraction of inactive channels (None for vectors), and sparsity.
    """
    inactive = None
    if isinstance(outputs, FeatureMapOutputs):
        inactive = float(outputs.is_inactive[:count].mean())
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "shape": list(layer.shape),
        "blank_channels": inactive,
        "zeros": float(outputs.sparsity[:count].mean()),
    }
