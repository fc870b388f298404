"""The distillation curve: what becomes of the picture and of its class from layer to layer.

"Information about the picture goes down, about the class goes up" (F. Chollet, 2017), measured: linear maps from every
layer's values to the class, and to the small picture itself, fitted to training images and judged on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from service.report.analysis.network import Network, Tap

# the picture to recover is so many pixels high and wide; layers at most
SIDE = 8


LAYERS = 24


SIDES = (SIDE, 1)  # maps are averaged to so many cells a side: what leaves the better linear map


STRENGTHS = tuple(
    10.0**power for power in range(-4, 3)
)  # strengths that are tried, as shares of the mean variance


BATCH = 32


SKIPPED = {
    "Rescaling",
    "Normalization",
    "Activation",
    "Softmax",
    "Sigmoid",
}  # what only stretches the values before it


Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Depth:
    """What is left, and what has come, at one layer.

    Attributes:
        layer: Its name.
        zeros: Share of zeros among its values.
        label: Accuracy of a linear map from its values to the class, on images it was not fitted to.
        picture: Share of the small picture's variance that a linear map from its values recovers there; at least 0.
    """

    layer: str
    zeros: float
    label: float
    picture: float


def ridge(candidates: Sequence[Floats], targets: Sequence[Floats], fitted: int) -> list[Floats]:
    """Predicts by ridge regression, from the features and with the strength that leaving out one image finds best (Allen, 1974).

    Args:
        candidates: Features `[N, F]` of the same images, one or several.
        targets: `[N, T]` each.
        fitted: To how many of the images, from the first, it is fitted.

    Returns:
        For every target float64 `[N - fitted, T]`, for the other images.
    """
    best = [(np.inf, np.zeros(0))] * len(targets)
    for features in candidates:
        x = features.astype(np.float64) - features[:fitted].mean(axis=0, dtype=np.float64)
        kernel = x @ x[:fitted].T  # [N, n]: images are mostly fewer than features
        values, vectors = np.linalg.eigh(kernel[:fitted])
        values, squares = np.maximum(values, 0), np.square(vectors)
        for place, target in enumerate(targets):
            offset = target[:fitted].mean(axis=0)
            rotated = vectors.T @ (target[:fitted] - offset)
            for strength in STRENGTHS:
                penalty = strength * max(float(values.mean()), 1e-30)
                shrunk = 1 / (values + penalty)
                dual = vectors @ (shrunk[:, None] * rotated)
                kept = squares @ shrunk - 1 / (
                    fitted * penalty
                )  # how little an image sways its own prediction, the offset included
                error = float(
                    np.square(dual / np.maximum(kept, 1e-30)[:, None]).mean()
                )  # of every image by the others, in closed form
                if error < best[place][0]:
                    best[place] = error, kernel[fitted:] @ dual + offset
    return [predicted for _, predicted in best]


def recovered(truth: Floats, predicted: Floats) -> float:
    """The share of variance explained, over all columns together; at least 0."""
    total = float(np.square(truth - truth.mean(axis=0)).sum())
    return max(0.0, 1 - float(np.square(truth - predicted).sum()) / total) if total > 0 else 0.0


def distill(network: Network, images: np.ndarray, labels: np.ndarray, fitted: int) -> list[Depth]:
    """Measures the pixels, and then every layer, or some spread over the depth.

    Args:
        network: What is looked into.
        images: uint8 `[N, H, W, C]`.
        labels: int `[N]`.
        fitted: To how many of them, from the first, linear maps are fitted; they are judged on the others.
    """
    layers = _values(network, chosen_layers(network), images)
    small, truth = layers["pixels"][0][0].astype(np.float64), np.eye(network.classes)[labels]
    found = []
    for name, (features, zeros) in layers.items():
        answers, drawn = ridge(features, (truth, small), fitted)
        right = float((answers.argmax(axis=1) == labels[fitted:]).mean())
        found.append(Depth(name, float(zeros[fitted:].mean()), right, recovered(small[fitted:], drawn)))
    return found


def chosen_layers(network: Network) -> list[Tap]:
    """The layers that are measured: all that do more than stretch values, or some of them spread evenly over the depth."""
    taps = [tap for tap in network.taps if tap.kind not in SKIPPED]
    places = (
        np.unique(np.linspace(0, len(taps) - 1, min(LAYERS, len(taps))).round().astype(int)) if taps else []
    )
    return [taps[place] for place in places]


def _values(
    network: Network, taps: list[Tap], images: np.ndarray
) -> dict[str, tuple[list[np.ndarray], np.ndarray]]:
    """Values `[N, F]` of the pixels and of every layer, maps averaged to few cells; and the share of zeros before that, `[N]`."""

    def values(x: tf.Tensor) -> list[tuple[list[tf.Tensor], tf.Tensor]]:
        outputs = network.run(x).outputs
        every = [x, *(tf.cast(outputs[tap.name], tf.float32) for tap in taps)]
        return [
            (averaged(y), tf.reduce_mean(tf.cast(y == 0, tf.float32), axis=range(1, y.ndim))) for y in every
        ]

    graph = network.compiled(values)
    parts = [graph(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    joined = tf.nest.map_structure(lambda *arrays: np.concatenate([a.numpy() for a in arrays]), *parts)
    return dict(zip(["pixels", *(tap.name for tap in taps)], joined, strict=True))


def averaged(y: tf.Tensor) -> list[tf.Tensor]:
    """Maps `[B, h, w, C]` averaged to at most so many cells a side, as rows `[B, F]`, for each of `SIDES`; rows stay as they are."""
    if y.ndim == 2:
        return [y]
    cells = [tf.image.resize(y, (min(side, y.shape[1]), min(side, y.shape[2])), "area") for side in SIDES]
    return [tf.reshape(c, (-1, int(np.prod(c.shape[1:])))) for c in cells]
