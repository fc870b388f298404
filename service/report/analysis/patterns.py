"""Filter patterns: images that maximize the activation of a filter, found by gradient ascent from noise.

The method is activation maximization (Erhan et al., 2009); the steps are those of F. Chollet (2016), "How
convolutional neural networks see the world".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from service.report.analysis.network import LayerInfo, Network, Trace

# Steps of gradient ascent.
STEPS = 20
# Filters that run at a time.
BATCH = 16
# Mean and width of the uniform noise that every image starts from.
NOISE_MEAN = 128.0
NOISE_WIDTH = 20.0
# Largest number of layers, spread over the depth.
LAYERS = 8
# Longer side of an image that is smaller than those of the model, in pixels.
MAX_SIDE = 128


@dataclass(frozen=True)
class FilterPatterns:
    """Patterns of F filters of a layer.

    Attributes:
        layer: Name of the layer.
        filters: Indices of the filters.
        images: float32 `[F, H, W, C]`, pixel values 0 to 255 and beyond.
        initial_activation: Mean activation of each filter for the noise, float32 `[F]`.
        final_activation: Mean activation of each filter for its image, float32 `[F]`.
    """

    layer: str
    filters: tuple[int, ...]
    images: np.ndarray
    initial_activation: np.ndarray
    final_activation: np.ndarray

    @property
    def is_unresponsive(self) -> np.ndarray:
        """Flags of filters whose activation did not rise, bool `[F]`; their images are still noise."""
        return np.asarray(~(self.final_activation > self.initial_activation))


def compute_filter_patterns(
    network: Network,
    layer: str,
    filters: Sequence[int],
    steps: int = STEPS,
    seed: int = 0,
    size: tuple[int, int] | None = None,
) -> FilterPatterns:
    """Computes the patterns of some filters.

    Every step adds the gradient of the mean activation, over its root mean square, to the pixels (0 to 255).

    Args:
        network: The network under analysis.
        layer: Name of a layer with outputs `[B, h, w, C]`.
        filters: Indices of the filters, or channels, of that layer.
        steps: Number of steps of gradient ascent.
        seed: Seed of the noise, which is the same for every filter.
        size: Height and width of the images; None takes those of the model.

    Raises:
        ConfigError: The network has no such layer.
    """
    network.find_layer(layer)
    height, width = size or network.shape[:2]
    low = NOISE_MEAN - NOISE_WIDTH / 2
    high = NOISE_MEAN + NOISE_WIDTH / 2
    shape = (1, height, width, network.shape[2])
    noise = np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)
    ascend = network.compile_graph(
        lambda images, indices: _ascend(network, layer, images, indices),
        tf.TensorSpec((None,), tf.int32),
        size=size,
    )
    images = []
    initial_activation = []
    final_activation = []
    for start in range(0, len(filters), BATCH):
        indices = tf.constant(filters[start : start + BATCH], tf.int32)
        batch = tf.tile(noise, (len(indices), 1, 1, 1))
        for step in range(steps + 1):
            stepped, activation = ascend(batch, indices)
            if step == 0:
                initial_activation.append(activation.numpy())
            # The last call only yields the activation after the last step.
            if step < steps:
                batch = stepped
        images.append(batch.numpy())
        final_activation.append(activation.numpy())
    return FilterPatterns(
        layer=layer,
        filters=tuple(filters),
        images=np.concatenate(images),
        initial_activation=np.concatenate(initial_activation),
        final_activation=np.concatenate(final_activation),
    )


def choose_pattern_layers(network: Network) -> list[LayerInfo]:
    """Chooses the layers whose filters are shown: convolutions and blocks of tokens, spread over the depth.

    The last one is always among them. Convolutions of a single position, as in squeeze and excitation, have
    no pattern and are left out.
    """
    candidates = [layer for layer in network.block_outputs if max(layer.shape[:2]) > 1]
    if not candidates:
        return []
    count = min(LAYERS, len(candidates))
    indices = np.unique(np.linspace(0, len(candidates) - 1, count).round().astype(int))
    return [candidates[index] for index in indices]


def choose_pattern_size(network: Network, layer: str) -> tuple[int, int]:
    """Chooses the size of a layer's patterns: that of the images, or less if the layer allows it."""
    height, width = network.shape[:2]
    factor = MAX_SIDE / max(height, width)
    if factor >= 1 or not network.is_size_independent(layer):
        return height, width
    return round(height * factor), round(width * factor)


def deprocess_patterns(images: np.ndarray) -> np.ndarray:
    """Brings patterns to mean 128 and standard deviation 64: float `[F, H, W, C]` to uint8 `[F, H, W, C]`."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    deviation = images.std(axis=(1, 2, 3), keepdims=True)
    levels = (images - mean) / np.maximum(deviation, 1e-5) * 64 + 128
    return np.asarray(np.clip(levels, 0, 255).round(), np.uint8)


def compute_objective(
    network: Network, layer: str, images: tf.Tensor, filters: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes what gradient ascent maximizes for F images, one per filter.

    That is the mean activation of the filter over all positions. If the activation is 0 everywhere, it has no
    gradient, and the mean of the values before the activation function takes its place.

    Args:
        network: The network under analysis.
        layer: Name of a layer with a feature map or tokens.
        images: float32 `[F, H, W, C]`, pixel values 0 to 255.
        filters: Index of a channel of the layer for every image, int32 `[F]`.

    Returns:
        The objective and the mean activation, float32 `[F]` each.
    """
    trace = network.run(images, stop_after=layer)
    preactivations, activations = _compute_filter_outputs(network, trace, layer, filters)  # [F, h, w, F]
    mean_activation = _average_diagonal(activations)
    largest = tf.reduce_max(tf.abs(activations), axis=(1, 2))  # [F, F]
    is_zero = tf.linalg.diag_part(largest) == 0
    return tf.where(is_zero, _average_diagonal(preactivations), mean_activation), mean_activation


def _ascend(
    network: Network, layer: str, images: tf.Tensor, filters: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Takes one step for F images, one per filter; returns the images and the activations before the step."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        objective, mean_activation = compute_objective(network, layer, images, filters)
    gradient = tape.gradient(objective, images)
    root_mean_square = tf.sqrt(tf.reduce_mean(tf.square(gradient), axis=(1, 2, 3), keepdims=True))
    return images + tf.math.divide_no_nan(gradient, root_mean_square), mean_activation


def _average_diagonal(activations: tf.Tensor) -> tf.Tensor:
    """Computes the mean activation of filter i for image i: `[F, h, w, F]` to float32 `[F]`."""
    return tf.linalg.diag_part(tf.cast(tf.reduce_mean(activations, axis=(1, 2)), tf.float32))


def _compute_filter_outputs(
    network: Network, trace: Trace, layer: str, filters: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the outputs of some filters before and after the activation function, `[F, h, w, F]` each.

    For a plain convolution, only these filters are computed. For other layers, both are the layer's output.
    """
    convolution = trace.operations[layer]
    is_plain = (
        type(convolution).__name__ == "Conv2D"
        and convolution.groups == 1
        and convolution.data_format == "channels_last"
    )
    if not is_plain:
        output = network.find_layer(layer).arrange(trace.outputs[layer])
        y = tf.gather(output, filters, axis=-1)
        return y, y
    x = trace.inputs[layer]
    kernel = tf.cast(tf.gather(convolution.kernel, filters, axis=-1), x.dtype)
    y = tf.nn.conv2d(
        x, kernel, convolution.strides, convolution.padding.upper(), dilations=convolution.dilation_rate
    )
    if convolution.use_bias:
        y += tf.cast(tf.gather(convolution.bias, filters), y.dtype)
    return y, convolution.activation(y)
