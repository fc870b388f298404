"""Precise batch norm statistics: evaluated and saved, without effect on the training."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from training_samples import config_for, create_run, fit_run, noise_shards, read_checkpoint

from pipelines.input.batches import Batches, read_rows
from service.runs import Run
from service.training.features import StageNetwork
from service.training.loop import Loop
from service.training.statistics import PreciseStatistics
from service.training.strategy import WorkerContext

SETTINGS: dict[str, Any] = {
    "model": "tiny_normalized",
    "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
    "epochs": 2,
    "ema": 0.9,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 training images, of which three batches of eight are full, and 10 validation images."""
    return noise_shards(tmp_path_factory.mktemp("statistics") / "shards")


@pytest.fixture(scope="module")
def precise(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with precise statistics."""
    config = config_for(shards, precise_batch_norm=100, **SETTINGS)
    return fit_run(tmp_path_factory.mktemp("precise") / "run", config)


def test_precise_statistics_change_the_evaluation_and_not_the_training(
    shards: Path, precise: Run, tmp_path: Path
) -> None:
    plain = fit_run(tmp_path / "plain", config_for(shards, **SETTINGS))
    pairs = zip(read_checkpoint(plain, "epoch-0002"), read_checkpoint(precise, "epoch-0002"), strict=True)
    for expected, array in pairs:
        np.testing.assert_array_equal(array, expected)
    assert plain.metrics()[-1]["val_loss"] != precise.metrics()[-1]["val_loss"]


def test_the_saved_model_has_the_statistics_of_the_training_images(shards: Path, precise: Run) -> None:
    model = keras.models.load_model(precise.model_path)
    of_pixels, hidden, of_hidden = (model.get_layer(name) for name in ("of_pixels", "hidden", "of_hidden"))
    data = config_for(shards, **SETTINGS).data
    batches = Batches(shards, "train", data, 8, seed=5)
    rows = [batches.find_rows(0, step).tolist() for step in range(3)]  # 24 images: the fourth batch is padded
    # [3, 8, 12, 12, 3], as the first normalization sees them
    pixels = np.stack([read_rows(shards, "train", data, batch)["image"] for batch in rows]) / 255
    np.testing.assert_allclose(of_pixels.moving_mean, pixels.mean(axis=(0, 1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(of_pixels.moving_variance, pixels.var(axis=(0, 1, 2, 3)), rtol=1e-4)

    # each batch is normalized by itself
    axes = (1, 2, 3)
    deviation = np.sqrt(pixels.var(axis=axes, keepdims=True) + of_pixels.epsilon)
    normalized = (pixels - pixels.mean(axis=axes, keepdims=True)) / deviation
    normalized = normalized * of_pixels.gamma.numpy() + of_pixels.beta.numpy()
    inputs = normalized.reshape(24, -1) @ hidden.kernel.numpy() + hidden.bias.numpy()
    # sums of 432 numbers in float32
    np.testing.assert_allclose(of_hidden.moving_mean, inputs.mean(axis=0), atol=2e-4)
    np.testing.assert_allclose(of_hidden.moving_variance, inputs.var(axis=0), rtol=1e-4)


def test_the_metrics_are_those_of_the_saved_model(shards: Path, precise: Run) -> None:
    model = keras.models.load_model(precise.model_path)
    data = read_rows(shards, "validation", config_for(shards, **SETTINGS).data, range(10))
    predictions = model.predict(data["image"].astype(np.float32), verbose=0)[:, 0] > 0.5
    best = max(metrics["val_accuracy"] for metrics in precise.metrics())
    assert (predictions == data["label"]).mean() == pytest.approx(best)


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "tiny_two_layers"},
        {"model": "tiny_normalized", "freeze": ["of_pixels", "of_hidden"]},
        {"model": "tiny_normalized", "global_batch": 32},
    ],
    ids=["no batch norm", "frozen batch norm", "no full batch"],
)
def test_the_moving_statistics_stay_where_nothing_can_be_measured(
    shards: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = config_for(shards, precise_batch_norm=100, epochs=1, **settings)
    loop = Loop(config, create_run(tmp_path / "run", config), WorkerContext())
    before = loop.learner.model.get_weights()
    with loop.statistics.swap_in():
        for expected, array in zip(before, loop.learner.model.get_weights(), strict=True):
            np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(("second", "variance"), [(201.3, 0.0), (202.1, 0.16)])
def test_the_variance_of_bright_pixels_is_not_lost_in_their_square(second: float, variance: float) -> None:
    """In float32 the square of 201.3 has an error of 0.004; a negative variance would give NaN."""
    image = keras.Input((4, 4, 1))
    layer = keras.layers.BatchNormalization()
    network = keras.Model(image, layer(image))
    stage_network = StageNetwork(network, network, lambda batch: batch, None)
    batch = {"image": tf.concat([tf.fill([4, 4, 4, 1], 201.3), tf.fill([4, 4, 4, 1], second)], 0)}
    batches = SimpleNamespace(
        rows=8,
        epoch_rows=8,
        global_batch=8,
        is_eager=False,
        epoch=lambda *_, **__: [batch],
        data_errors=nullcontext,
    )
    strategy = tf.distribute.get_strategy()
    statistics = PreciseStatistics(stage_network, strategy, batches, WorkerContext(), 8)
    with statistics.swap_in():
        assert layer.moving_mean.numpy() == pytest.approx((201.3 + second) / 2)
        assert layer.moving_variance.numpy() == pytest.approx(variance, abs=1e-4)
        assert layer.moving_variance.numpy() >= 0
    assert layer.moving_mean.numpy() == 0
    assert layer.moving_variance.numpy() == 1
