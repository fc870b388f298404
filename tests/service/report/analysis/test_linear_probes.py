"""Linear probes: ridge regression against closed forms, and a network that discards all but the class."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from service.report.analysis import linear_probes
from service.report.analysis.linear_probes import (
    LinearProbe,
    compute_explained_variance,
    fit_linear_probes,
    predict_with_ridge,
)
from service.report.analysis.network import Network

L = keras.layers
RNG = np.random.default_rng(0)


def predict_by_normal_equations(x: np.ndarray, y: np.ndarray, fit_count: int, penalty: float) -> np.ndarray:
    """Ridge regression with a relative penalty, solved by the normal equations."""
    mean = x[:fit_count].mean(axis=0)
    offset = y[:fit_count].mean(axis=0)
    centred = x - mean
    inner = centred[:fit_count].T @ centred[:fit_count]
    inner += absolute_penalty(centred[:fit_count], penalty) * np.eye(x.shape[1])
    weights = np.linalg.solve(inner, centred[:fit_count].T @ (y[:fit_count] - offset))
    return centred[fit_count:] @ weights + offset


def absolute_penalty(centred: np.ndarray, penalty: float) -> float:
    """A penalty relative to the mean eigenvalue of the kernel."""
    return penalty * np.linalg.eigvalsh(centred @ centred.T).mean()


@pytest.mark.parametrize("features", [5, 60])
def test_ridge_solves_the_normal_equations(monkeypatch, features):
    x = RNG.normal(size=(40, features)) + 3
    y = RNG.normal(size=(40, 2))
    monkeypatch.setattr(linear_probes, "PENALTIES", (0.3,))
    predictions = predict_with_ridge([x], [y], 30)[0]
    np.testing.assert_allclose(predictions, predict_by_normal_equations(x, y, 30, 0.3), atol=1e-9)


def leave_one_out_error(x: np.ndarray, y: np.ndarray, penalty: float) -> float:
    """The mean squared error of every image under the regression fitted to all others, fitted one by one."""
    absolute = absolute_penalty(x - x.mean(axis=0), penalty)
    errors = []
    for i in range(len(x)):
        others = np.arange(len(x)) != i
        mean = x[others].mean(axis=0)
        offset = y[others].mean()
        centred = x[others] - mean
        inner = centred.T @ centred + absolute * np.eye(x.shape[1])
        weights = np.linalg.solve(inner, centred.T @ (y[others] - offset))
        errors.append(np.square(y[i] - (x[i] - mean) @ weights - offset))
    return float(np.mean(errors))


def test_penalty_and_features_are_those_with_the_smallest_leave_one_out_error(monkeypatch):
    x = RNG.normal(size=(40, 60))
    y = x[:, :1] + RNG.normal(size=(40, 1))
    penalties = (0.01, 0.3, 10.0)
    errors = [leave_one_out_error(x[:30], y[:30], penalty) for penalty in penalties]
    assert np.argmin(errors) == 1
    monkeypatch.setattr(linear_probes, "PENALTIES", penalties)
    expected = predict_by_normal_equations(x, y, 30, penalties[1])
    np.testing.assert_allclose(predict_with_ridge([x], [y], 30)[0], expected, atol=1e-9)
    useless = RNG.normal(size=(40, 60))
    np.testing.assert_allclose(predict_with_ridge([useless, x], [y], 30)[0], expected, atol=1e-9)


def test_explained_variance_is_1_for_the_truth_and_never_below_0():
    truth = np.array([[0.0, 1.0], [2.0, 5.0]])
    assert compute_explained_variance(truth, truth) == 1
    assert compute_explained_variance(truth, np.array([[1.0, 1.0], [2.0, 5.0]])) == pytest.approx(0.9)
    assert compute_explained_variance(truth, -truth) == 0
    assert compute_explained_variance(np.ones((2, 2)), np.zeros((2, 2))) == 0


def averaging_network() -> Network:
    """A network with a layer that keeps the image, one of zeros, and one of the averages of both halves."""
    image = keras.Input((16, 16, 1))
    same = L.Conv2D(1, 1, name="same", use_bias=False, kernel_initializer="ones")(image)
    zeros = L.ReLU(threshold=1000.0, name="zeros")(same)
    halves = L.AveragePooling2D((8, 16), name="halves")(zeros * 0 + same)
    return Network(keras.Model(image, L.Dense(2, name="logits")(L.Flatten()(halves))), 1 / 255)


def test_side_branches_without_positions_are_not_probed():
    image = keras.Input((8, 8, 1))
    x = L.Conv2D(4, 3, name="first")(image)
    summary = L.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    gate = L.Conv2D(4, 1, activation="sigmoid", name="excite")(summary)
    flat = L.Dense(4, name="gate")(L.Flatten(name="flat")(gate))
    x = L.Multiply(name="scaled")([x, L.Reshape((1, 1, 4), name="unflat")(flat)])
    x = L.GlobalAveragePooling2D(name="pool")(L.Conv2D(4, 3, name="second")(x))
    network = Network(keras.Model(image, L.Dense(2, name="logits")(x)))
    names = [layer.name for layer in linear_probes.choose_layers(network)]
    assert names == ["first", "scaled", "second", "pool", "logits"]


def noise_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of noise and their labels; those of class 1 have a brighter first half."""
    images = RNG.integers(0, 256, (count, 16, 16, 1)).astype(np.uint8)
    labels = RNG.integers(0, 2, count)
    images[:, :8] = images[:, :8] * 0.6 + (labels * 90)[:, None, None, None]
    return images, labels


def test_probes_of_a_network_that_discards_the_image_and_keeps_the_class():
    images, labels = noise_images(150)
    probes = {probe.layer: probe for probe in fit_linear_probes(averaging_network(), images, labels, 100)}
    assert list(probes)[:2] == ["pixels", "same"]
    assert probes["pixels"].explained_variance > 0.99
    assert probes["same"].explained_variance == pytest.approx(probes["pixels"].explained_variance, abs=1e-6)
    assert probes["halves"].explained_variance < 0.5
    assert probes["halves"].accuracy > 0.9
    majority = max(np.mean(labels[100:]), 1 - np.mean(labels[100:]))
    assert probes["zeros"] == LinearProbe("zeros", 1.0, pytest.approx(majority, abs=0.5), 0.0)


def test_probes_are_tested_on_images_they_were_not_fitted_to():
    """Labels of noise cannot be predicted, but a probe knows those of the images that it was fitted to."""
    images, _ = noise_images(150)
    labels = RNG.integers(0, 2, 150)
    probes = fit_linear_probes(averaging_network(), images, labels, 100)
    assert all(probe.accuracy < 0.75 for probe in probes)
