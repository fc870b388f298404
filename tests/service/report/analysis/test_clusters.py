"""Clusters: groups that are far apart are found, the largest first."""

from __future__ import annotations

import numpy as np
import pytest

from service.report.analysis.clusters import choose_cluster_count, find_clusters

SIZES = (60, 40, 25, 10)


def build_groups(features: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Builds points around four centres at a distance of 10, in random order, and the group of each."""
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(4), SIZES)
    centres = np.zeros((4, features))
    centres[np.arange(4), np.arange(4)] = 10
    points = centres[groups] + generator.uniform(-0.5, 0.5, (len(groups), features)) / np.sqrt(features)
    order = generator.permutation(len(groups))
    return points[order].astype(np.float32), groups[order]


@pytest.mark.parametrize("features", [4, 256, 257, 2000])
@pytest.mark.parametrize("seed", range(5))
def test_separate_groups_are_found_and_numbered_by_size(features: int, seed: int) -> None:
    points, groups = build_groups(features, seed)
    np.testing.assert_array_equal(find_clusters(points, 4, seed), groups)


def test_centres_are_the_means_of_their_clusters() -> None:
    """A fixed point of k-means: every point is nearest to the mean of its own cluster."""
    points = np.random.default_rng(3).normal(3, 1, size=(100, 5)).astype(np.float32)
    clusters = find_clusters(points, 6, 0)
    means = np.stack([points[clusters == k].mean(axis=0) for k in range(6)])
    distances = np.linalg.norm(points[:, None] - means, axis=2)
    np.testing.assert_array_equal(distances.argmin(axis=1), clusters)
    sizes = np.bincount(clusters)
    assert (np.diff(sizes) <= 0).all()


def test_a_large_set_is_clustered_by_a_sample() -> None:
    points = np.repeat(np.eye(3, dtype=np.float32) * 9, [4000, 2000, 1000], axis=0)
    assert np.bincount(find_clusters(points, 3, 0)).tolist() == [4000, 2000, 1000]


def test_the_same_seed_gives_the_same_clusters() -> None:
    points = np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)
    np.testing.assert_array_equal(find_clusters(points, 5, 7), find_clusters(points, 5, 7))


def test_equal_images_are_one_cluster() -> None:
    assert find_clusters(np.ones((10, 3), np.float32), 4, 0).tolist() == [0] * 10
    assert find_clusters(np.zeros((0, 3), np.float32), 4, 0).tolist() == []
    two = find_clusters(np.array([[0], [0], [5]], np.float32), 3, 0)
    assert two.tolist() == [0, 0, 1]


def test_the_number_of_clusters_follows_classes_and_images() -> None:
    assert choose_cluster_count(1000, 2) == 8
    assert choose_cluster_count(1000, 7) == 14
    assert choose_cluster_count(10_000, 1000) == 20
    assert choose_cluster_count(33, 2) == 4
    assert choose_cluster_count(6, 2) == 0
