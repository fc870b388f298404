"""The distillation curve: ridge regression in closed form, and a network that forgets the picture and keeps the class."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from service.report.analysis import linear_probes
from service.report.analysis.linear_probes import LinearProbe, fit_linear_probes, compute_explained_variance, predict_with_ridge
from service.report.analysis.network import Network
from service.report.sections.linear_probes import build_section, told
from service.report.subject import Subject

L = keras.layers
RNG = np.random.default_rng(0)


def by_hand(x: np.ndarray, y: np.ndarray, fitted: int, strength: float) -> np.ndarray:
    """Ridge regression by the normal equations."""
    mean, offset = x[:fitted].mean(axis=0), y[:fitted].mean(axis=0)
    centred = x - mean
    penalty = strength * np.linalg.eigvalsh(centred[:fitted] @ centred[:fitted].T).mean()
    inner = centred[:fitted].T @ centred[:fitted] + penalty * np.eye(x.shape[1])
    return centred[fitted:] @ np.linalg.solve(inner, centred[:fitted].T @ (y[:fitted] - offset)) + offset


@pytest.mark.parametrize("features", [5, 60])
def test_ridge_is_the_normal_equations(monkeypatch, features):
    x, y = RNG.normal(size=(40, features)) + 3, RNG.normal(size=(40, 2))
    monkeypatch.setattr(linear_probes, "PENALTIES", (0.3,))
    np.testing.assert_allclose(predict_with_ridge([x], [y], 30)[0], by_hand(x, y, 30, 0.3), atol=1e-9)


def test_the_strength_is_the_one_that_leaving_one_out_finds_best(monkeypatch):
    x = RNG.normal(size=(40, 60))
    y = x[:, :1] + RNG.normal(size=(40, 1))
    strengths, errors = (0.01, 0.3, 10.0), []
    for strength in strengths:
        monkeypatch.setattr(linear_probes, "PENALTIES", (strength,))
        centred = x[:30] - x[:30].mean(axis=0)
        penalty = strength * np.linalg.eigvalsh(centred @ centred.T).mean()
        left_out = []
        for i in range(30):
            others = np.arange(30) != i
            mean, offset = x[:30][others].mean(axis=0), y[:30][others].mean()
            z = x[:30][others] - mean
            weights = np.linalg.solve(z.T @ z + penalty * np.eye(60), z.T @ (y[:30][others] - offset))
            left_out.append(np.square(y[i] - (x[i] - mean) @ weights - offset))
        errors.append(np.mean(left_out))
    monkeypatch.setattr(linear_probes, "PENALTIES", strengths)
    assert np.argmin(errors) == 1
    best = strengths[int(np.argmin(errors))]
    np.testing.assert_allclose(predict_with_ridge([x], [y], 30)[0], by_hand(x, y, 30, best), atol=1e-9)
    useless = RNG.normal(size=(40, 60))
    np.testing.assert_allclose(predict_with_ridge([useless, x], [y], 30)[0], by_hand(x, y, 30, best), atol=1e-9)


def test_what_is_recovered():
    truth = np.array([[0.0, 1.0], [2.0, 5.0]])
    assert compute_explained_variance(truth, truth) == 1
    assert compute_explained_variance(truth, np.array([[1.0, 1.0], [2.0, 5.0]])) == pytest.approx(0.9)
    assert compute_explained_variance(truth, -truth) == 0
    assert compute_explained_variance(np.ones((2, 2)), np.zeros((2, 2))) == 0


def network_and_images(count: int) -> tuple[Network, np.ndarray, np.ndarray]:
    """Pictures of noise, of class 1 where the left is on average brighter; a network that subtracts and averages."""
    images = RNG.integers(0, 256, (count, 16, 16, 1)).astype(np.uint8)
    labels = RNG.integers(0, 2, count)
    images[:, :8] = images[:, :8] * 0.6 + (labels * 90)[:, None, None, None]
    image = keras.Input((16, 16, 1))
    same = L.Conv2D(1, 1, name="same", use_bias=False, kernel_initializer="ones")(image)
    halves = L.AveragePooling2D((8, 16), name="halves")(
        L.ReLU(threshold=1000.0, name="wiped")(same) * 0 + same
    )
    return (
        Network(keras.Model(image, L.Dense(2, name="logits")(L.Flatten()(halves))), 1 / 255),
        images,
        labels,
    )


def test_a_network_that_forgets_the_picture_and_keeps_the_class():
    network, images, labels = network_and_images(150)
    found = {depth.layer: depth for depth in fit_linear_probes(network, images, labels, 100)}
    assert list(found)[:2] == ["pixels", "same"]
    assert found["pixels"].picture > 0.99
    assert found["same"].picture == pytest.approx(found["pixels"].picture, abs=1e-6)
    assert found["halves"].picture < 0.5
    assert found["halves"].label > 0.9
    assert found["wiped"] == LinearProbe(
        "wiped", 1.0, pytest.approx(max(np.mean(labels[100:]), 1 - np.mean(labels[100:])), abs=0.5), 0.0
    )


def test_judged_images_are_never_fitted_to():
    """Labels of noise: whoever is judged on what it was fitted to names them all."""
    network, images, _ = network_and_images(150)
    labels = RNG.integers(0, 2, 150)
    found = fit_linear_probes(network, images, labels, 100)
    assert all(depth.label < 0.75 for depth in found)


class Noise:
    """A split of noise."""

    def __init__(self, split: str, count: int) -> None:
        self.split, self.labels, self.rows = split, np.arange(count, dtype=np.int32) % 2, []
        self.images = RNG.integers(0, 256, (count, 16, 16, 1)).astype(np.uint8)

    def read(self, rows):
        self.rows += [rows]
        return self.images[rows]


def test_images_come_from_training_and_from_the_judged_split():
    network, _, _ = network_and_images(1)
    training, judged = Noise("train", 60), Noise("validation", 40)
    section = build_section(Subject("n", network.model, "m", "s", ("a", "b"), training, judged, 1.0), None)  # type: ignore[arg-type]
    assert (section.figures["fitted"], section.figures["judged"]) == (60, 40)
    assert [layer["layer"] for layer in section.figures["layers"]] == list(section.values["plot"].ticks)
    alone = Noise("train", 99)
    section = build_section(Subject("n", network.model, "m", "s", ("a", "b"), alone, alone, 1.0), None)  # type: ignore[arg-type]
    assert (section.figures["fitted"], section.figures["judged"]) == (66, 33)
    assert not set(alone.rows[0]) & set(alone.rows[1])
    few = Noise("train", 50)
    assert build_section(Subject("n", network.model, "m", "s", ("a", "b"), few, few, 1.0), None) is None  # type: ignore[arg-type]


def test_the_curve_in_words():
    pixels = LinearProbe("pixels", 0.0, 0.5, 1.0)
    assert "forgets the picture" in told([pixels, LinearProbe("l", 0.0, 0.9, 0.2)])
    assert "not forgotten" in told([pixels, LinearProbe("l", 0.0, 0.9, 1.0)])
    assert "adds nothing" in told([pixels, LinearProbe("l", 0.0, 0.5, 0.2)])
