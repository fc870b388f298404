"""Clusters of images whose features are similar: k-means on the features of the penultimate layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_CLUSTERS = 20
MIN_CLUSTERS = 8
MIN_CLUSTER_IMAGES = 8  # images per cluster, on average, below which there are fewer clusters
FIT_IMAGES = 1000  # images that the centres are computed from
MAX_FEATURES = 64  # more features are projected to this number
MAX_ITERATIONS = 50
STARTS = 4  # first centres that are tried; the best result counts
NO_CLUSTER = -1  # cluster of an image whose features are not known


def choose_cluster_count(images: int, classes: int) -> int:
    """Chooses the number of clusters: two per class within bounds, and fewer for few images."""
    return min(max(MIN_CLUSTERS, 2 * classes), MAX_CLUSTERS, images // MIN_CLUSTER_IMAGES)


def find_clusters(features: NDArray[np.float32], count: int, seed: int) -> NDArray[np.int64]:
    """Finds clusters by k-means (Lloyd, 1982), started by k-means++ (Arthur and Vassilvitskii, 2007).

    Many features are first reduced by a random projection, which keeps distances approximately (Johnson and
    Lindenstrauss, 1984). The centres of a large set are computed from a sample.

    Args:
        features: float32 `[N, D]`, finite.
        count: Largest number of clusters; there are fewer if fewer images differ.
        seed: Seed of projection, sample and first centres.

    Returns:
        Cluster of each image, int64 `[N]`: 0 is the largest, then by size.
    """
    if not len(features) or count < 1:
        return np.zeros(len(features), np.int64)
    generator = np.random.default_rng(seed)
    reduced = features.reshape(len(features), -1)
    if reduced.shape[1] > MAX_FEATURES:
        reduced = reduced @ generator.standard_normal((reduced.shape[1], MAX_FEATURES), np.float32)
    points = reduced.astype(np.float64)
    sample = points
    if len(points) > FIT_IMAGES:
        sample = points[np.sort(generator.choice(len(points), FIT_IMAGES, replace=False))]
    candidates = [_move_centres(sample, _choose_centres(sample, count, generator)) for _ in range(STARTS)]
    errors = [_square_distances(sample, centres).min(axis=1).sum() for centres in candidates]
    best = candidates[int(np.argmin(errors))]
    return _number_by_size(_square_distances(points, best).argmin(axis=1))


def assign_clusters(
    features: NDArray[np.float32], indices: NDArray[np.int64], images: int, classes: int, seed: int
) -> NDArray[np.int64] | None:
    """Assigns the images of a split to clusters, as far as their features are known.

    Args:
        features: float32 `[n, D]`, finite.
        indices: int64 `[n]`, the images with these features.
        images: Number of all images.
        classes: Number of classes.
        seed: Seed of the clusters.

    Returns:
        Cluster of each image, int64 `[images]`, `NO_CLUSTER` without features; None if there are too few.
    """
    count = choose_cluster_count(len(indices), classes)
    if count < 2:
        return None
    clusters = np.full(images, NO_CLUSTER, np.int64)
    clusters[indices] = find_clusters(features, count, seed)
    return clusters


def _move_centres(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Moves centres to the mean of the points that are nearest to them, until they stay where they are."""
    for _ in range(MAX_ITERATIONS):
        nearest = _square_distances(points, centres).argmin(axis=1)
        members = (np.arange(len(centres))[:, None] == nearest).astype(np.float64)  # [K, N]
        sizes = members.sum(axis=1, keepdims=True)
        # A centre without members stays where it is.
        moved = np.where(sizes > 0, members @ points / np.maximum(sizes, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def _choose_centres(
    points: NDArray[np.float64], count: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Chooses centres among the points, with probability by the squared distance to those chosen before.

    Returns:
        float64 `[<= count, D]`, all different.
    """
    chosen = [int(generator.integers(len(points)))]
    distances = _square_distances(points, points[chosen])[:, 0]
    while len(chosen) < count and distances.max() > 0:
        index = int(generator.choice(len(points), p=distances / distances.sum()))
        chosen.append(index)
        distances = np.minimum(distances, _square_distances(points, points[[index]])[:, 0])
        distances[chosen] = 0  # the expanded square leaves a rounding error
    return points[chosen]


def _square_distances(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Computes squared Euclidean distances, float64 `[N, K]`."""
    squares = (points**2).sum(axis=1)[:, None] - 2 * points @ centres.T + (centres**2).sum(axis=1)
    positive: NDArray[np.float64] = np.maximum(squares, 0)
    return positive


def _number_by_size(assigned: NDArray[np.int64]) -> NDArray[np.int64]:
    """Renumbers clusters by falling size; of equally large ones, the one with the first image comes first."""
    _, first, renumbered, sizes = np.unique(
        assigned, return_index=True, return_inverse=True, return_counts=True
    )
    numbers = np.empty(len(sizes), np.int64)
    numbers[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    result: NDArray[np.int64] = numbers[renumbered]
    return result
