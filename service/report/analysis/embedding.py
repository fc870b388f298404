"""Embedding: the features of the penultimate layer in two dimensions, in which similar images are close."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ConfigError

Method = Literal["pca", "tsne"]

MIN_IMAGES = 5
EXACT_VALUES = 100_000  # features of which the decomposition is exact; of more, it would take seconds
OVERSAMPLING = 10
POWER_ITERATIONS = 7
PERPLEXITY = 30.0  # of t-SNE: about how many neighbours of an image count
TSNE_COMPONENTS = 50  # principal components that t-SNE starts from

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Embedding:
    """Positions of n images.

    Attributes:
        method: The method that computed them.
        positions: float64 `[n, 2]`.
        explained: Share of the variance of the features that each dimension of PCA explains, float64 `[2]`;
            None
            for t-SNE, whose distances have no such meaning.
    """

    method: Method
    positions: Floats
    explained: Floats | None = None


def embed(features: NDArray[np.float32], method: Method, seed: int) -> Embedding | None:
    """Computes positions in two dimensions.

    Args:
        features: float32 `[n, F]`.
        method: `pca` (Pearson, 1901) or `tsne` (van der Maaten and Hinton, 2008), which needs scikit-learn.
        seed: Seed of what is random in the method.

    Returns:
        The embedding; None for fewer than `MIN_IMAGES` images, or features that are all the same.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    if len(features) < MIN_IMAGES or not features.shape[1]:
        return None
    positions, explained = compute_principal_components(features, 2, seed)
    if not positions.any():
        return None
    if method == "pca":
        return Embedding(method, positions, explained)
    return Embedding(method, _compute_tsne(features, seed))


def compute_principal_components(
    features: NDArray[np.floating], count: int, seed: int
) -> tuple[Floats, Floats]:
    """Computes the first principal components of features; of many values by a randomized decomposition.

    The randomized decomposition is that of Halko, Martinsson and Tropp (2011), with power iterations.

    Args:
        features: float `[n, F]`.
        count: Number of components; those beyond the rank of the features are 0.
        seed: Seed of the randomized decomposition.

    Returns:
        Positions, float64 `[n, count]`, centred, each with the sign for which the largest weight of a
        feature is positive; and the share of the variance that each component explains, float64 `[count]`.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    total = float(np.square(centred).sum())
    directions = _find_directions(centred, count, seed)  # [<= count, F]
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)])
    positions = np.zeros((len(features), count))
    positions[:, : len(directions)] = centred @ (directions * signs[:, None]).T
    explained = np.square(positions).sum(axis=0) / max(total, np.finfo(np.float64).tiny)
    return positions, explained


def _find_directions(centred: Floats, count: int, seed: int) -> Floats:
    """Returns the first right singular vectors, float64 `[<= count, F]`."""
    if centred.size <= EXACT_VALUES:
        return np.asarray(np.linalg.svd(centred, full_matrices=False)[2][:count])
    width = min(count + OVERSAMPLING, *centred.shape)
    basis = np.random.default_rng(seed).normal(size=(centred.shape[1], width))
    for _ in range(POWER_ITERATIONS):
        basis = np.linalg.qr(centred.T @ (centred @ basis))[0]
    _, _, small = np.linalg.svd(centred @ basis, full_matrices=False)  # [width, width]
    return np.asarray((small @ basis.T)[:count])


def _compute_tsne(features: NDArray[np.float32], seed: int) -> Floats:
    """Computes positions by scikit-learn's t-SNE, which begins with the principal components."""
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise ConfigError(
            "scikit-learn for an embedding by t-SNE",
            "embedding=tsne",
            "install it with: pip install -e '.[embedding]', or use embedding=pca",
        ) from None
    components, _ = compute_principal_components(features, min(TSNE_COMPONENTS, features.shape[1]), seed)
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    # One thread, because sums of several have no fixed order, and t-SNE amplifies the difference.
    with threadpool_limits(1):
        tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed % 2**32, n_jobs=1)
        return np.asarray(tsne.fit_transform(components), np.float64)
