"""Which pixels an answer hangs on: gradients, SmoothGrad and integrated gradients of a class's logit by the pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from service.report.analysis.network import Network

# images with noise, whose deviation is such a share of an image's range (Smilkov et al., 2017)
NOISY = 25


SPREAD = 0.15


STEPS = 32  # from black to the image (Sundararajan et al., 2017)


@dataclass(frozen=True)
class Saliency:
    """What pixels say for a class.

    Attributes:
        gradient: float32 `[N, H, W, C]`, of the logit by every pixel.
        smooth: The mean size of the gradients of images with noise, at least 0.
        integrated: What every pixel adds to the logit on the way from a black image; sums to the difference.
        difference: float32 `[N]`: the logit of the image less that of a black one.
    """

    gradient: np.ndarray
    smooth: np.ndarray
    integrated: np.ndarray
    difference: np.ndarray

    @property
    def incomplete(self) -> np.ndarray:
        """By how much the integrated gradients miss the difference they should sum to, as a share of it, `[N]`."""
        missed = np.abs(self.integrated.sum(axis=(1, 2, 3)) - self.difference)
        return np.asarray(missed / np.maximum(np.abs(self.difference), 1e-6))


def saliency(network: Network, images: np.ndarray, classes: np.ndarray, seed: int = 0) -> Saliency:
    """Works all three out.

    Args:
        network: What is looked into.
        images: `[N, H, W, C]`, 0 to 255.
        classes: int `[N]`, whose logits.
        seed: Of the noise, which is the same for every image.
    """

    def derived(x: tf.Tensor, asked: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            logits = tf.gather(network.run(x).logits, asked, batch_dims=1)
        return logits, tape.gradient(logits, x)

    graph = network.compiled(derived, tf.TensorSpec((None,), tf.int32))
    x, asked = images.astype(np.float32), tf.constant(classes, tf.int32)
    logits, gradient = (t.numpy() for t in graph(x, asked))
    width = (x.max(axis=(1, 2, 3), keepdims=True) - x.min(axis=(1, 2, 3), keepdims=True)) * SPREAD
    noise = np.random.default_rng(seed)
    smooth = np.mean(
        [
            np.abs(graph(x + width * noise.normal(size=x.shape[1:]).astype(np.float32), asked)[1])
            for _ in range(NOISY)
        ],
        axis=0,
    )
    way = np.mean([graph(x * ((step + 0.5) / STEPS), asked)[1] for step in range(STEPS)], axis=0)
    black = graph(np.zeros_like(x), asked)[0].numpy()
    return Saliency(gradient, smooth, x * way, logits - black)
