"""Saliency of single pixels: gradients, SmoothGrad and integrated gradients of a class's logit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from service.report.analysis.network import Network

# Noisy copies of each image, and the standard deviation of the noise as a fraction of the image's range
# (Smilkov et al., 2017, SmoothGrad).
SMOOTHGRAD_SAMPLES = 25
SMOOTHGRAD_NOISE = 0.15
# Points on the way from a black image (Sundararajan et al., 2017, Axiomatic attribution for deep networks).
INTEGRATION_STEPS = 32
MAX_INTEGRATION_STEPS = 512  # reached by doubling for images whose sum is wrong
COMPLETENESS_TOLERANCE = 0.05  # relative error of the sum that Sundararajan et al. recommend as a limit


@dataclass(frozen=True)
class Saliency:
    """Saliency maps of N images.

    Attributes:
        gradient: Gradient of the logit with respect to every pixel, float32 `[N, H, W, C]`.
        smoothgrad: Mean absolute gradient over noisy copies of the image, `[N, H, W, C]`.
        integrated_gradients: Contribution of every pixel to the logit on the way from a black image,
            `[N, H, W, C]`; sums to `logit_difference` up to the error of integration.
        logit_difference: Logit of the image minus that of a black image, float32 `[N]`.
        steps: Number of points on the way from the black image, int `[N]`.
    """

    gradient: np.ndarray
    smoothgrad: np.ndarray
    integrated_gradients: np.ndarray
    logit_difference: np.ndarray
    steps: np.ndarray

    @property
    def completeness_error(self) -> np.ndarray:
        """Relative error of the sum of the integrated gradients against the logit difference, `[N]`."""
        return _compute_completeness_error(self.integrated_gradients, self.logit_difference)


def compute_saliency(network: Network, images: np.ndarray, classes: np.ndarray, seed: int = 0) -> Saliency:
    """Computes the three saliency maps of every image.

    Args:
        network: The network to explain.
        images: Images `[N, H, W, C]`, 0 to 255.
        classes: Class whose logit is explained, int `[N]`.
        seed: Seed of the noise of SmoothGrad, which is the same for every image.
    """

    def differentiate(x: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            logits = tf.gather(network.run(x).logits, labels, batch_dims=1)  # [N]
        return logits, tape.gradient(logits, x)

    graph = network.compile_graph(differentiate, tf.TensorSpec((None,), tf.int32))
    x = images.astype(np.float32)
    labels = tf.constant(classes, tf.int32)
    logits, gradient = (tensor.numpy() for tensor in graph(x, labels))

    value_range = x.max(axis=(1, 2, 3), keepdims=True) - x.min(axis=(1, 2, 3), keepdims=True)
    deviation = value_range * SMOOTHGRAD_NOISE
    generator = np.random.default_rng(seed)
    absolute_gradients = []
    for _ in range(SMOOTHGRAD_SAMPLES):
        noise = generator.normal(size=x.shape[1:]).astype(np.float32)
        absolute_gradients.append(np.abs(graph(x + deviation * noise, labels)[1]))
    smoothgrad = np.mean(absolute_gradients, axis=0)

    logit_difference = logits - graph(np.zeros_like(x), labels)[0].numpy()
    integrated_gradients = np.zeros_like(x)
    steps = np.zeros(len(x), np.int64)
    remaining = np.arange(len(x))
    count = INTEGRATION_STEPS
    while len(remaining) and count <= MAX_INTEGRATION_STEPS:
        integrated_gradients[remaining] = _integrate_gradients(
            graph, x[remaining], tf.gather(labels, remaining), count
        )
        steps[remaining] = count
        errors = _compute_completeness_error(integrated_gradients, logit_difference)
        remaining = np.flatnonzero(errors > COMPLETENESS_TOLERANCE)
        count *= 2
    return Saliency(gradient, smoothgrad, integrated_gradients, logit_difference, steps)


def _integrate_gradients(
    graph: Callable[..., Any], images: np.ndarray, labels: tf.Tensor, steps: int
) -> np.ndarray:
    """Integrates the gradient on the straight way from a black image by the midpoint rule, `[N, H, W, C]`."""
    total = np.zeros(images.shape, np.float64)
    for step in range(steps):
        total += graph(images * (step + 0.5) / steps, labels)[1].numpy()
    return np.asarray(images * total / steps, np.float32)


def _compute_completeness_error(integrated_gradients: np.ndarray, logit_difference: np.ndarray) -> np.ndarray:
    """Computes the relative error of the sum of `[N, H, W, C]` against the logit difference `[N]`."""
    error = np.abs(integrated_gradients.sum(axis=(1, 2, 3)) - logit_difference)
    return np.asarray(error / np.maximum(np.abs(logit_difference), 1e-6))
