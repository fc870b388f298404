"""Where a network looks: class activation maps of a whole batch from one graph, for any classes, layers and methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from service.report.analysis.network import Network, Trace

METHODS = ("gradcam", "gradcam++", "layercam")
BATCH = 32  # images at a time

Maps = dict[tuple[str, str], np.ndarray]


class Seen(NamedTuple):
    """What came of a batch.

    Attributes:
        logits: float32 `[B, K]`.
        maps: float32 `[B, M, h, w]` by layer and method.
        also: What else was asked for, as NumPy arrays.
    """

    logits: np.ndarray
    maps: Maps
    also: Any


class Heatmaps:
    """Class activation maps of a network.

    What comes before the first of the layers runs outside the tape, and gradients start at the logits: behind a softmax that is
    sure of itself they vanish.

    Args:
        network: What is looked into.
        layers: Names of taps `[B, H, W, C]`.
        methods: Grad-CAM (Selvaraju et al., 2017), Grad-CAM++ (Chattopadhay et al., 2018), LayerCAM (Jiang et al., 2021); and
            `signed`, Grad-CAM in which what speaks against the class is below zero instead of zero.
        classes: For how many classes of each image.
        also: What else is made of the same run: a function of its trace, to tensors `[B, ...]` in any structure.

    Raises:
        ConfigError: There is no such layer.
    """

    def __init__(
        self,
        network: Network,
        layers: Sequence[str],
        methods: Sequence[str] = ("gradcam",),
        classes: int = 1,
        also: Callable[[Trace], Any] = lambda trace: (),
    ) -> None:
        self.network, self.also, self.methods = network, also, tuple(methods)
        self.layers = tuple(network.tap(name).name for name in layers)
        self._graph = network.compiled(self._traced, tf.TensorSpec((None, classes), tf.int32))

    def __call__(self, images: np.ndarray, classes: np.ndarray) -> Seen:
        """Makes the maps of a batch.

        Args:
            images: `[B, H, W, C]`, 0 to 255.
            classes: int `[B, M]`, the classes asked for.

        Returns:
            Logits and maps, at the sizes of the layers and not brought to a common scale.
        """
        chunks = [slice(start, start + BATCH) for start in range(0, len(images), BATCH)]
        parts = [self._graph(images[chunk], tf.constant(classes[chunk], tf.int32)) for chunk in chunks]
        logits, maps, also = tf.nest.map_structure(
            lambda *arrays: np.concatenate([a.numpy() for a in arrays]), *parts
        )
        keys = [(layer, method) for layer in self.layers for method in self.methods]
        return Seen(logits, dict(zip(keys, maps, strict=True)), also)

    def _traced(self, images: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor], Any]:
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            trace = self.network.run(
                images, seen=lambda name, y: tape.watch(y) if name in self.layers else None
            )
        values = [trace.outputs[layer] for layer in self.layers]
        of_class = []  # [M][layers][B, h, w, C]
        for column in tf.unstack(classes, axis=1):
            asked = tf.one_hot(column, self.network.classes)
            of_class.append(tape.gradient(trace.logits, values, asked, unconnected_gradients="zero"))
        maps = []
        for y, gradients in zip(values, zip(*of_class, strict=True), strict=True):
            y = tf.cast(y, tf.float32)
            maps += [
                tf.stack([activation_map(y, tf.cast(g, tf.float32), method) for g in gradients], axis=1)
                for method in self.methods
            ]
        return trace.logits, maps, self.also(trace)


def activation_map(values: Any, gradients: Any, method: str) -> tf.Tensor:
    """Weighs the channels of a layer by what they mean for a class.

    Args:
        values: float32 `[B, h, w, C]`, the layer's output.
        gradients: float32 `[B, h, w, C]`, of the class's logit by those values.
        method: See `Heatmaps`.

    Returns:
        float32 `[B, h, w]`, at least 0 but for `signed`.
    """
    if method == "layercam":
        return tf.nn.relu(tf.reduce_sum(tf.nn.relu(gradients) * values, axis=-1))
    if method == "gradcam++":
        # Second and third derivative of exp(logit) are powers of the first: the factor of the exponential cancels.
        denominator = 2 + gradients * tf.reduce_sum(values, axis=(1, 2), keepdims=True)
        shares = tf.where(gradients == 0, 0.0, tf.math.divide_no_nan(tf.ones_like(gradients), denominator))
        shares = tf.math.divide_no_nan(shares, tf.reduce_sum(shares, axis=(1, 2), keepdims=True))
        weights = tf.reduce_sum(shares * tf.nn.relu(gradients), axis=(1, 2))
    else:
        weights = tf.reduce_mean(gradients, axis=(1, 2))  # [B, C]
    weighted = tf.linalg.matvec(values, weights[:, None, :])  # [B, h, w, C] by [B, 1, C]
    return weighted if method == "signed" else tf.nn.relu(weighted)
