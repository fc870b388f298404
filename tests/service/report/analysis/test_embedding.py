"""Embedding: principal components equal to those of the covariance matrix, exact or randomized."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

from pipelines.errors import ConfigError
from service.report.analysis.embedding import compute_principal_components, embed

FAR = np.array([100.0, -50.0, 3.0, 0.0])  # a mean far from zero, which must not become a direction


def correlated(count: int = 200, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mixing = np.array([[3.0, 1.0, 0.0, 0.5], [0.0, 1.0, 1.0, 0.0], [0.1, 0.0, 0.2, 0.1]])
    return generator.normal(size=(count, 3)) @ mixing + FAR


def solve_covariance(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions and shares of the variance from the covariance matrix."""
    values, vectors = np.linalg.eigh(np.cov(features.T))
    directions = vectors[:, ::-1][:, :2]
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[largest, [0, 1]])
    return (features - features.mean(axis=0)) @ directions, values[::-1][:2] / values.sum()


def test_positions_are_those_of_the_covariance_matrix() -> None:
    features = correlated()
    positions, explained = compute_principal_components(features, 2, seed=0)
    expected, shares = solve_covariance(features)
    np.testing.assert_allclose(positions, expected, atol=1e-9)
    np.testing.assert_allclose(explained, shares, rtol=1e-9)
    np.testing.assert_allclose(positions.mean(axis=0), 0, atol=1e-9)


def test_the_randomized_decomposition_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    scales = 1.3 ** -np.arange(60)
    features = (generator.normal(size=(300, 60)) * scales) @ generator.normal(size=(60, 60)) + 40
    exact, shares = compute_principal_components(features, 2, seed=0)
    monkeypatch.setattr("service.report.analysis.embedding.EXACT_VALUES", 0)
    positions, explained = compute_principal_components(features, 2, seed=3)
    np.testing.assert_allclose(positions, exact, atol=1e-4 * np.abs(exact).max())
    np.testing.assert_allclose(explained, shares, rtol=1e-5)
    again, _ = compute_principal_components(features, 2, seed=3)
    np.testing.assert_array_equal(positions, again)


def test_a_single_feature_has_one_dimension() -> None:
    positions, explained = compute_principal_components(np.arange(6.0)[:, None], 2, seed=0)
    np.testing.assert_allclose(positions[:, 0], np.arange(6) - 2.5)
    np.testing.assert_array_equal(positions[:, 1], 0)
    np.testing.assert_allclose(explained, [1, 0], atol=1e-12)


def test_few_or_equal_images_have_no_embedding() -> None:
    assert embed(correlated(4).astype(np.float32), "pca", 0) is None
    assert embed(np.ones((10, 3), np.float32), "pca", 0) is None
    assert embed(np.zeros((10, 0), np.float32), "pca", 0) is None


def test_tsne_without_scikit_learn_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *arguments: object, **options: object) -> object:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"\.\[embedding\]"):
        embed(correlated().astype(np.float32), "tsne", 0)


def test_tsne_separates_groups_and_is_the_same_again() -> None:
    pytest.importorskip("sklearn.manifold")
    generator = np.random.default_rng(2)
    features = np.concatenate([generator.normal(0, 1, (60, 8)), generator.normal(12, 1, (60, 8))])
    first = embed(features.astype(np.float32), "tsne", 0)
    second = embed(features.astype(np.float32), "tsne", 0)
    np.testing.assert_array_equal(first.positions, second.positions)
    means = first.positions[:60].mean(axis=0), first.positions[60:].mean(axis=0)
    spread = first.positions[:60].std(axis=0).max()
    assert np.linalg.norm(means[0] - means[1]) > 3 * spread
    assert first.explained is None
