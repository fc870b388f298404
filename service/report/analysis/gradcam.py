"""Computes class activation maps of a whole batch in one graph, for any classes, layers and methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from service.report.analysis.network import Network, Trace

METHODS = ("gradcam", "gradcam++", "layercam")
# Images that run at a time.
BATCH = 32

# Maps float32 [N, M, h, w] of N images for M classes each, by layer and method.
Heatmaps = dict[tuple[str, str], np.ndarray]


class CamResult(NamedTuple):
    """Class activation maps of a batch, with the logits and other values from the same forward pass.

    Attributes:
        logits: float32 `[B, K]`.
        maps: float32 `[B, M, h, w]` by layer and method.
        extras: Result of `extra_outputs`, as NumPy arrays.
    """

    logits: np.ndarray
    maps: Heatmaps
    extras: Any


class CamExtractor:
    """Computes class activation maps of a network.

    The gradient tape records only operations after the first of the layers. Gradients start at the logits,
    because those of a confident softmax vanish.

    The methods are `gradcam` (Selvaraju et al., 2017, Grad-CAM), `gradcam++` (Chattopadhay et al., 2018),
    `layercam` (Jiang et al., 2021), and `signed`: Grad-CAM without the final ReLU, negative where values
    lower the logit.

    Args:
        network: The network to explain.
        layers: Names of layers with outputs `[B, H, W, C]`, or with tokens.
        methods: Names of the methods.
        classes: Number of classes explained per image.
        extra_outputs: Function of the trace to tensors `[B, ...]` in any structure, run in the same graph.

    Raises:
        ConfigError: The network has no such layer.
    """

    def __init__(
        self,
        network: Network,
        layers: Sequence[str],
        methods: Sequence[str] = ("gradcam",),
        classes: int = 1,
        extra_outputs: Callable[[Trace], Any] = lambda trace: (),
    ) -> None:
        self.network = network
        self._layers = tuple(network.find_layer(name) for name in layers)
        self._methods = tuple(methods)
        self._extra_outputs = extra_outputs
        self._graph = network.compile_graph(self._compute, tf.TensorSpec((None, classes), tf.int32))

    def __call__(self, images: np.ndarray, classes: np.ndarray) -> CamResult:
        """Computes the maps of some images.

        Args:
            images: Images `[N, H, W, C]`, 0 to 255.
            classes: Classes to explain, int `[N, M]`.

        Returns:
            Logits and maps; every map has the size of its layer and its own scale.
        """
        batches = []
        for start in range(0, len(images), BATCH):
            batch = slice(start, start + BATCH)
            batches.append(self._graph(images[batch], tf.constant(classes[batch], tf.int32)))
        logits, maps, extras = tf.nest.map_structure(
            lambda *tensors: np.concatenate([tensor.numpy() for tensor in tensors]), *batches
        )
        keys = [(layer.name, method) for layer in self._layers for method in self._methods]
        return CamResult(logits, dict(zip(keys, maps, strict=True)), extras)

    def _compute(self, images: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor], Any]:
        """Computes logits, maps `[B, M, h, w]` of every layer and method, and extra outputs, in the graph."""
        names = {layer.name for layer in self._layers}
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:

            def watch_layers(name: str, y: tf.Tensor) -> None:
                if name in names:
                    tape.watch(y)

            trace = self.network.run(images, on_output=watch_layers)
        outputs = [trace.outputs[layer.name] for layer in self._layers]
        gradients_by_class = []  # [M][layers][B, h, w, C]
        for labels in tf.unstack(classes, axis=1):
            seed = tf.one_hot(labels, self.network.class_count)  # [B, K], selects the logits
            gradients = tape.gradient(trace.logits, outputs, seed, unconnected_gradients="zero")
            gradients_by_class.append(gradients)
        maps = []
        gradients_by_layer = zip(*gradients_by_class, strict=True)
        for layer, output, gradients in zip(self._layers, outputs, gradients_by_layer, strict=True):
            values = tf.cast(layer.arrange(output), tf.float32)
            gradient_maps = [tf.cast(layer.arrange(gradient), tf.float32) for gradient in gradients]
            for method in self._methods:
                cams = [compute_cam(values, gradient, method) for gradient in gradient_maps]
                maps.append(tf.stack(cams, axis=1))  # [B, M, h, w]
        return trace.logits, maps, self._extra_outputs(trace)


def compute_cam(values: Any, gradients: Any, method: str) -> tf.Tensor:
    """Computes the class activation map of one layer for one class.

    Args:
        values: Output of the layer, float32 `[B, h, w, C]`.
        gradients: Gradients of the class's logit with respect to `values`, float32 `[B, h, w, C]`.
        method: Name of a method, see `CamExtractor`.

    Returns:
        float32 `[B, h, w]`, at least 0 except for `signed`.
    """
    if method == "layercam":
        return tf.nn.relu(tf.reduce_sum(tf.nn.relu(gradients) * values, axis=-1))
    if method == "gradcam++":
        weights = _compute_gradcam_plus_plus_weights(values, gradients)
    else:
        weights = tf.reduce_mean(gradients, axis=(1, 2))  # [B, C]
    weighted = tf.linalg.matvec(values, weights[:, None, :])  # [B, h, w, C] by [B, 1, C] to [B, h, w]
    return weighted if method == "signed" else tf.nn.relu(weighted)


def _compute_gradcam_plus_plus_weights(values: Any, gradients: Any) -> tf.Tensor:
    """Computes the weights of the channels, `[B, C]` (Chattopadhay et al., 2018)."""
    # The second and third derivative of exp(logit) are powers of the first: the factor exp(logit) cancels.
    denominator = 2 + gradients * tf.reduce_sum(values, axis=(1, 2), keepdims=True)
    alphas = tf.where(gradients == 0, 0.0, tf.math.divide_no_nan(tf.ones_like(gradients), denominator))
    alphas = tf.math.divide_no_nan(alphas, tf.reduce_sum(alphas, axis=(1, 2), keepdims=True))
    return tf.reduce_sum(alphas * tf.nn.relu(gradients), axis=(1, 2))
