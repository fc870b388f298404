"""Values of the sanity checks of heatmaps, for every image: dependence on the weights, and faithfulness."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from service.report.analysis.gradcam import BATCH, CamExtractor
from service.report.analysis.measures import (
    PerturbationCurves,
    compute_perturbation_curves,
    randomize_weights,
    spearman,
)
from service.report.analysis.network import Network

RANDOMIZATIONS = 3  # sets of shuffled weights, whose correlations are averaged

Floats = NDArray[np.floating]


def correlate(maps: Floats, others: Floats) -> Floats:
    """Computes the rank correlation of every heatmap of `[N, h, w]` with its counterpart, float64 `[N]`."""
    return np.array([spearman(a, b) for a, b in zip(maps, others, strict=True)])


def compute_maps(extractor: CamExtractor, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns signed heatmaps `[N, M, h, w]` of the extractor's only layer."""
    (maps,) = extractor(pixels, classes).maps.values()
    return maps


def compute_shuffled_maps(
    extractor: CamExtractor, pixels: np.ndarray, classes: np.ndarray, seed: int
) -> np.ndarray:
    """Computes the heatmaps of a model whose weights are shuffled, see `measures.randomize_weights`.

    Args:
        extractor: Extractor of the heatmaps of one layer; its model has its weights again afterwards.
        pixels: Images `[N, H, W, C]`.
        classes: Classes to explain, int `[N, M]`.
        seed: Seed of the first of `RANDOMIZATIONS` permutations.

    Returns:
        float32 `[RANDOMIZATIONS, N, M, h, w]`.
    """
    shuffled = []
    for draw in range(RANDOMIZATIONS):
        with randomize_weights(extractor.network.model, seed + draw):
            shuffled.append(compute_maps(extractor, pixels, classes))
    return np.stack(shuffled)


def correlate_with_shuffled(maps: Floats, shuffled: Floats) -> Floats:
    """Computes the mean rank correlation of every heatmap with those of shuffled weights.

    Args:
        maps: Heatmaps `[N, h, w]`.
        shuffled: Heatmaps of shuffled weights, `[RANDOMIZATIONS, N, h, w]`.

    Returns:
        float64 `[N]`.
    """
    return np.asarray(np.mean([correlate(maps, others) for others in shuffled], axis=0))


def compute_curves(
    network: Network, pixels: np.ndarray, classes: np.ndarray, maps: np.ndarray, seed: int
) -> tuple[PerturbationCurves, PerturbationCurves]:
    """Computes the curves in the order of the heatmaps, and of random maps of the same size."""
    graph = network.compile_graph(lambda x: tf.nn.softmax(network.run(x).logits))

    def predict(images: np.ndarray) -> np.ndarray:
        batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        return np.concatenate([graph(batch).numpy() for batch in batches])

    images = pixels.astype(np.float32)
    random_maps = np.random.default_rng(seed).normal(size=maps.shape).astype(np.float32)
    by_map = compute_perturbation_curves(predict, images, classes, maps, seed)
    by_chance = compute_perturbation_curves(predict, images, classes, random_maps, seed)
    return by_map, by_chance
