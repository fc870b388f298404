"""Linear probes: how well linear models recover the class, and the image itself, from every layer.

The method is that of Alain and Bengio (2016), "Understanding intermediate layers using linear classifier
probes". The probes are fitted to some images by ridge regression and tested on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from service.report.analysis.activations import compute_sparsity
from service.report.analysis.network import LayerInfo, Network

# Height and width of the small copy of the image that probes recover, in pixels.
SIDE = 8
# Largest number of layers to probe.
MAX_LAYERS = 24
# Feature maps are averaged to at most this many cells per side. The better of both probes counts.
POOLED_SIDES = (SIDE, 1)
# Candidate penalties, relative to the mean eigenvalue of the kernel.
PENALTIES = tuple(10.0**power for power in range(-4, 3))
# Images that run at a time.
BATCH = 32
# Layers that only rescale or squash the outputs of the layer before them.
SKIPPED_KINDS = {"Rescaling", "Normalization", "Activation", "Softmax", "Sigmoid"}

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class LinearProbe:
    """Scores of the linear probes of one layer, on images they were not fitted to.

    Attributes:
        layer: Name of the layer; `pixels` for the images themselves.
        sparsity: Fraction of zeros among the layer's outputs.
        accuracy: Accuracy of the probe for the class.
        explained_variance: Fraction of the small image's variance that its probe explains; at least 0.
    """

    layer: str
    sparsity: float
    accuracy: float
    explained_variance: float


@dataclass(frozen=True)
class LayerFeatures:
    """Features of one layer for N images.

    Attributes:
        candidates: Features `[N, F]`, one array for each of `POOLED_SIDES`, or one for a layer of vectors.
        sparsity: Fraction of zeros among the layer's outputs, float32 `[N]`.
    """

    candidates: list[np.ndarray]
    sparsity: np.ndarray


def fit_linear_probes(
    network: Network, images: np.ndarray, labels: np.ndarray, fit_count: int
) -> list[LinearProbe]:
    """Fits linear probes to the pixels and to every layer, or to some layers spread over the depth.

    Args:
        network: The network under analysis.
        images: uint8 `[N, H, W, C]`.
        labels: True classes, int `[N]`.
        fit_count: Number of images, from the first, that the probes are fitted to; the others test them.

    Returns:
        The probes of the pixels, then those of the layers in the order in which they run.
    """
    features = _extract_features(network, choose_layers(network), images)
    small_images = features["pixels"].candidates[0].astype(np.float64)
    one_hot = np.eye(network.class_count)[labels]
    probes = []
    for layer, layer_features in features.items():
        targets = (one_hot, small_images)
        scores, recovered_images = predict_with_ridge(layer_features.candidates, targets, fit_count)
        accuracy = (scores.argmax(axis=1) == labels[fit_count:]).mean()
        probes.append(
            LinearProbe(
                layer=layer,
                sparsity=float(layer_features.sparsity[fit_count:].mean()),
                accuracy=float(accuracy),
                explained_variance=compute_explained_variance(small_images[fit_count:], recovered_images),
            )
        )
    return probes


def choose_layers(network: Network) -> list[LayerInfo]:
    """Chooses the layers to probe: all that do more than rescale, or some of them spread over the depth.

    Side branches without positions, such as those of squeeze-and-excitation, are left out: they hold a
    summary of the image next to the path that keeps it, and the curves would fall and rise at each of them.
    """
    layers = [layer for layer in network.layers if layer.kind not in SKIPPED_KINDS]
    last_map = max((n for n, layer in enumerate(layers) if _has_positions(layer)), default=-1)
    layers = [layer for n, layer in enumerate(layers) if n > last_map or _has_positions(layer)]
    if not layers:
        return []
    indices = np.linspace(0, len(layers) - 1, min(MAX_LAYERS, len(layers))).round().astype(int)
    return [layers[index] for index in np.unique(indices)]


def _has_positions(layer: LayerInfo) -> bool:
    return layer.is_feature_map and layer.shape[0] * layer.shape[1] > 1


def predict_with_ridge(
    candidates: Sequence[Floats], targets: Sequence[Floats], fit_count: int
) -> list[Floats]:
    """Predicts targets by ridge regression.

    For each target, the features and the penalty with the smallest leave-one-out error are used. Ridge
    regression has this error in closed form, the PRESS statistic (Allen, 1974).

    Args:
        candidates: Alternative features of the same images, `[N, F]` each.
        targets: Targets of the images, `[N, T]` each.
        fit_count: Number of images, from the first, that the regression is fitted to.

    Returns:
        For every target the predictions for the other images, float64 `[N - fit_count, T]`.
    """
    smallest_errors = [np.inf] * len(targets)
    predictions: list[Floats] = [np.zeros(0)] * len(targets)
    for features in candidates:
        x = features.astype(np.float64) - features[:fit_count].mean(axis=0, dtype=np.float64)
        # The dual form: there are mostly fewer images than features.
        kernel = x @ x[:fit_count].T  # [N, fit_count]
        eigenvalues, eigenvectors = np.linalg.eigh(kernel[:fit_count])
        eigenvalues = np.maximum(eigenvalues, 0)
        squared_eigenvectors = np.square(eigenvectors)
        for index, target in enumerate(targets):
            offset = target[:fit_count].mean(axis=0)
            rotated = eigenvectors.T @ (target[:fit_count] - offset)
            for relative_penalty in PENALTIES:
                penalty = relative_penalty * max(float(eigenvalues.mean()), 1e-30)
                shrinkage = 1 / (eigenvalues + penalty)
                dual = eigenvectors @ (shrinkage[:, None] * rotated)
                # Diagonal of the inverse of kernel + penalty, corrected for the offset, which is fitted too.
                inverse_diagonal = squared_eigenvectors @ shrinkage - 1 / (fit_count * penalty)
                residuals = dual / np.maximum(inverse_diagonal, 1e-30)[:, None]
                error = float(np.square(residuals).mean())
                if error < smallest_errors[index]:
                    smallest_errors[index] = error
                    predictions[index] = kernel[fit_count:] @ dual + offset
    return predictions


def compute_explained_variance(truth: Floats, predictions: Floats) -> float:
    """Computes the fraction of variance explained, over all columns together; at least 0."""
    total = float(np.square(truth - truth.mean(axis=0)).sum())
    if total <= 0:
        return 0.0
    return max(0.0, 1 - float(np.square(truth - predictions).sum()) / total)


def pool_features(y: tf.Tensor) -> list[tf.Tensor]:
    """Averages feature maps to few cells and flattens them.

    Args:
        y: Feature maps `[B, h, w, C]`, or vectors `[B, F]`.

    Returns:
        Features `[B, F]` for each of `POOLED_SIDES`; vectors unchanged.
    """
    if y.ndim == 2:
        return [y]
    features = []
    for side in POOLED_SIDES:
        size = (min(side, y.shape[1]), min(side, y.shape[2]))
        cells = tf.image.resize(y, size, "area")
        features.append(tf.reshape(cells, (-1, int(np.prod(cells.shape[1:])))))
    return features


def _extract_features(
    network: Network, layers: list[LayerInfo], images: np.ndarray
) -> dict[str, LayerFeatures]:
    """Extracts features of the pixels and of some layers, by layer name."""

    def extract(x: tf.Tensor) -> list[tuple[list[tf.Tensor], tf.Tensor]]:
        outputs = network.run(x).outputs
        values = [x]
        values += [tf.cast(layer.arrange(outputs[layer.name]), tf.float32) for layer in layers]
        return [(pool_features(y), compute_sparsity(y)) for y in values]

    graph = network.compile_graph(extract)
    batches = [graph(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    arrays = tf.nest.map_structure(
        lambda *tensors: np.concatenate([tensor.numpy() for tensor in tensors]), *batches
    )
    names = ["pixels", *(layer.name for layer in layers)]
    return {name: LayerFeatures(*values) for name, values in zip(names, arrays, strict=True)}
