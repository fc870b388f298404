"""Saliency of single pixels: gradients, SmoothGrad and integrated gradients of a class's logit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from service.report.analysis.network import Network

# Noisy copies of each image, and the standard deviation of the noise as a fraction of the image's range
# (Smilkov et al., 2017, SmoothGrad).
SMOOTHGRAD_SAMPLES = 25
SMOOTHGRAD_NOISE = 0.15
# Points on the way from a black image (Sundararajan et al., 2017, Axiomatic attribution for deep networks).
INTEGRATION_STEPS = 32


@dataclass(frozen=True)
class Saliency:
    """Saliency maps of N images.

    Attributes:
        gradient: Gradient of the logit with respect to every pixel, float32 `[N, H, W, C]`.
        smoothgrad: Mean absolute gradient over noisy copies of the image, `[N, H, W, C]`.
        integrated_gradients: Contribution of every pixel to the logit on the way from a black image,
            `[N, H, W, C]`; sums to `logit_difference` up to the error of integration.
        logit_difference: Logit of the image minus that of a black image, float32 `[N]`.
    """

    gradient: np.ndarray
    smoothgrad: np.ndarray
    integrated_gradients: np.ndarray
    logit_difference: np.ndarray

    @property
    def completeness_error(self) -> np.ndarray:
        """Relative error of the sum of the integrated gradients against the logit difference, `[N]`."""
        error = np.abs(self.integrated_gradients.sum(axis=(1, 2, 3)) - self.logit_difference)
        return np.asarray(error / np.maximum(np.abs(self.logit_difference), 1e-6))


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

    path_gradients = []
    for step in range(INTEGRATION_STEPS):
        fraction = (step + 0.5) / INTEGRATION_STEPS
        path_gradients.append(graph(x * fraction, labels)[1])
    integrated_gradients = x * np.mean(path_gradients, axis=0)

    black_logits = graph(np.zeros_like(x), labels)[0].numpy()
    return Saliency(gradient, smoothgrad, integrated_gradients, logits - black_logits)
