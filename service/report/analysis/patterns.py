"""What filters look for: images that answer them best, made from noise by gradient ascent (Erhan et al., 2009)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from service.report.analysis.network import Network, Trace

STEPS = 20
BATCH = 16  # filters at a time
GREY, NOISE = (
    128.0,
    20.0,
)  # what an image starts from: grey, and the width of uniform noise around it (F. Chollet, 2016)


@dataclass(frozen=True)
class Patterns:
    """What F filters of a layer look for.

    Attributes:
        layer: Its name.
        filters: Which filters.
        images: float32 `[F, H, W, C]`, pixels 0 to 255 and beyond.
        before: float32 `[F]`: how strongly the filter answers the noise, averaged over all places.
        after: float32 `[F]`: how strongly it answers the image.
    """

    layer: str
    filters: tuple[int, ...]
    images: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @property
    def silent(self) -> np.ndarray:
        """Which filters never answered, bool `[F]`: there was no way up, and the image is still noise."""
        return np.asarray(~(self.after > self.before))


def patterns(
    network: Network,
    layer: str,
    filters: Sequence[int],
    steps: int = STEPS,
    seed: int = 0,
    size: tuple[int, int] | None = None,
) -> Patterns:
    """Makes the patterns of some filters: every step adds the gradient over its root mean square, in pixels of 0 to 255.

    Args:
        network: What is looked into.
        layer: Name of a layer `[B, h, w, C]`.
        filters: Which of its channels.
        steps: How many steps uphill.
        seed: Of the noise, which is the same for every filter.
        size: Height and width of the images, where that is not the model's own.

    Raises:
        ConfigError: There is no such layer.
    """
    network.tap(layer)
    shape = (*(size or network.shape[:2]), network.shape[2])
    noise = (
        np.random.default_rng(seed)
        .uniform(GREY - NOISE / 2, GREY + NOISE / 2, (1, *shape))
        .astype(np.float32)
    )
    step = network.compiled(
        lambda images, chosen: _uphill(network, layer, images, chosen),
        tf.TensorSpec((None,), tf.int32),
        size=size,
    )
    images, before, after = [], [], []
    for start in range(0, len(filters), BATCH):
        chosen = tf.constant(filters[start : start + BATCH], tf.int32)
        x = tf.tile(noise, (len(chosen), 1, 1, 1))
        for number in range(steps + 1):
            climbed, scores = step(x, chosen)
            if number == 0:
                before.append(scores.numpy())
            x = climbed if number < steps else x  # the last round only scores
        images.append(x.numpy())
        after.append(scores.numpy())
    return Patterns(
        layer, tuple(filters), np.concatenate(images), np.concatenate(before), np.concatenate(after)
    )


def pixels(images: np.ndarray) -> np.ndarray:
    """Patterns as pictures: every one brought to mean 128 and deviation 64. Float `[F, H, W, C]` to uint8."""
    mean, deviation = images.mean(axis=(1, 2, 3), keepdims=True), images.std(axis=(1, 2, 3), keepdims=True)
    return np.clip((images - mean) / np.maximum(deviation, 1e-5) * 64 + 128, 0, 255).round().astype(np.uint8)


def _uphill(
    network: Network, layer: str, images: tf.Tensor, chosen: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """One step of F images for a filter each, and how strongly that answered before the step.

    Where a filter is silent all over, behind its ReLU, the way up is that of its value before the ReLU.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        raw, answers = _answers(network.run(images, until=layer), layer, chosen)  # [F, h, w, F]
        scores, below = _own(answers), _own(raw)
        silent = tf.linalg.diag_part(tf.reduce_max(tf.abs(answers), axis=(1, 2))) == 0
        climbed = tf.where(silent, below, scores)
    gradient = tape.gradient(climbed, images)
    size = tf.sqrt(tf.reduce_mean(tf.square(gradient), axis=(1, 2, 3), keepdims=True))
    return images + tf.math.divide_no_nan(gradient, size), scores


def _own(answers: tf.Tensor) -> tf.Tensor:
    """The mean answer of filter i to image i: `[F, h, w, F]` to float32 `[F]`."""
    return tf.linalg.diag_part(tf.cast(tf.reduce_mean(answers, axis=(1, 2)), tf.float32))


def _answers(trace: Trace, layer: str, chosen: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The layer's output for these filters alone, before and after its activation; of a convolution only their kernels are computed."""
    convolution, x = trace.operations[layer], trace.inputs[layer]
    if (
        type(convolution).__name__ != "Conv2D"
        or convolution.groups != 1
        or convolution.data_format != "channels_last"
    ):
        y = tf.gather(trace.outputs[layer], chosen, axis=-1)
        return y, y
    kernel = tf.cast(tf.gather(convolution.kernel, chosen, axis=-1), x.dtype)
    y = tf.nn.conv2d(
        x, kernel, convolution.strides, convolution.padding.upper(), dilations=convolution.dilation_rate
    )
    if convolution.use_bias:
        y += tf.cast(tf.gather(convolution.bias, chosen), y.dtype)
    return y, convolution.activation(y)


LARGEST = 128


def shown_size(network: Network, layer: str) -> tuple[int, int]:
    """The size of a layer's patterns: the images' own, or smaller where they are large and the layer allows it."""
    height, width = network.shape[:2]
    factor = LARGEST / max(height, width)
    return (
        (height, width)
        if factor >= 1 or not network.is_elastic(layer)
        else (round(height * factor), round(width * factor))
    )
