"""Features of frozen layers: where a network is cut, and that caching them does not change the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from training_samples import config_for, create_run, fit_run, noise_shards, read_checkpoint

from service.config import RunConfig
from service.models import Task, build_model
from service.models.layers import add_head
from service.runs import Run
from service.training.features import find_frozen_features
from service.training.loop import Loop
from service.training.optimizers import freeze_layers
from service.training.strategy import WorkerContext

L = keras.layers
STAGES = [
    {"epochs": 1, "freeze": ["of_pixels", "hidden"]},
    {"epochs": 2, "freeze": "of_pixels", "learning_rate": 0.02},
]
RECIPE: dict[str, Any] = {
    "model": "tiny_normalized",
    "augment": None,
    "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
    "ema": 0.9,
}


def build_branched_model() -> keras.Model:
    """Two branches that meet in `sum`, and dropout after `late`."""
    image = keras.Input((4, 4, 3), name="image")
    x = L.Conv2D(2, 1, name="stem")(L.Rescaling(1 / 255)(image))
    x = L.Add(name="sum")([L.Conv2D(2, 1, name="left")(x), L.BatchNormalization(name="right")(x)])
    x = L.Dense(4, name="late")(L.Flatten(name="flat")(x))
    x = L.Dropout(0.5, name="drop")(x)
    return keras.Model(image, add_head(L.Dense(3, name="last")(x), 2))


@pytest.mark.parametrize(
    ("freeze", "end"),
    [
        ((), None),  # scaled pixels are not features
        (("last",), None),
        (("right",), None),
        (("stem",), "stem"),
        (("stem", "left"), "stem"),  # between the branches there is no single tensor
        (("stem", "left", "right"), "flat"),  # after `sum`, up to the last layer before a trainable one
        (("stem", "left", "right", "late"), "late"),  # before the layer that is random
        (("stem", "left", "right", "late", "last"), "late"),
        (("stem", "right", "late"), "stem"),
    ],
)
def test_a_network_is_cut_after_its_last_constant_tensor(freeze: tuple[str, ...], end: str | None) -> None:
    model = build_branched_model()
    freeze_layers(model, freeze)
    features = find_frozen_features(model)
    if end is None:
        assert features is None
    else:
        assert features is model.get_layer(end).output


def test_dropout_of_rate_0_is_constant() -> None:
    image = keras.Input((2,))
    x = L.Dropout(0.0, name="none")(L.Dense(2, name="frozen")(image))
    model = keras.Model(image, add_head(x, 2))
    freeze_layers(model, ("frozen",))
    assert find_frozen_features(model) is model.get_layer("none").output


def test_a_layer_that_runs_twice_comes_before_the_cut_both_times() -> None:
    image = keras.Input((3,))
    twice = L.Dense(3, name="twice")
    model = keras.Model(image, add_head(twice(twice(image)), 2))
    freeze_layers(model, ("twice",))
    assert find_frozen_features(model) is model.get_layer("logits").input


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_shards(tmp_path_factory.mktemp("features") / "shards")


def create_config(shards: Path, cache: str = "auto", **changes: Any) -> RunConfig:
    return config_for(shards, data={"image_size": [12, 12], "cache": cache}, **(RECIPE | changes))


def assert_similar(first: Run, second: Run) -> None:
    """Both runs learned the same in three epochs, up to rounding."""
    pairs = zip(read_checkpoint(first, "epoch-0003"), read_checkpoint(second, "epoch-0003"), strict=True)
    for expected, array in pairs:
        np.testing.assert_allclose(array, expected, rtol=0, atol=1e-5)
    for expected_metrics, metrics in zip(first.metrics(), second.metrics(), strict=True):
        for name in ("loss", "accuracy", "val_loss", "val_accuracy", "val_auc"):
            assert metrics[name] == pytest.approx(expected_metrics[name], abs=1e-5)


def test_cached_features_do_not_change_the_training(shards: Path, tmp_path: Path) -> None:
    """In two stages with different frozen layers, and with a padded last batch."""
    plain = fit_run(tmp_path / "plain", create_config(shards, "none", stages=STAGES))
    cached = fit_run(tmp_path / "cached", create_config(shards, stages=STAGES))
    assert_similar(plain, cached)
    assert "features" not in plain.status()["caches"]
    cache = cached.status()["caches"]["features"]
    assert cache.startswith("cache: host (0.0 MB of features of frozen layers, up to hidden; ")
    notice = cached.status()["notices"][-1]
    assert notice.startswith("features: cache: host (0.1 MB of features of frozen layers, up to flatten")


def test_frozen_layers_do_not_run_where_their_features_are_cached(shards: Path, tmp_path: Path) -> None:
    config = create_config(shards, freeze=["of_pixels", "hidden"], epochs=1)
    loop = Loop(config, create_run(tmp_path / "run", config), WorkerContext())
    assert loop.learner.stage_network.network.input.shape == (None, 8)
    # The features are cached by now, so these weights no longer have an effect.
    loop.learner.model.get_layer("hidden").kernel.assign(np.full((432, 8), np.nan))
    loop.run_epochs()
    (metrics,) = loop.run.metrics()
    assert np.isfinite([metrics["loss"], metrics["val_loss"]]).all()


@pytest.mark.slow
def test_a_stage_has_the_features_of_the_weights_learned_before_it(shards: Path, tmp_path: Path) -> None:
    """Not those of the first weights, even if the run is resumed within the stage."""
    stages = [{"epochs": 1}, {"epochs": 2, "freeze": ["of_pixels", "hidden"]}]
    plain = fit_run(tmp_path / "plain", create_config(shards, "none", stages=stages))
    config = create_config(shards, stages=stages, steps_per_call=1)
    assert_similar(plain, fit_run(tmp_path / "cached", config))
    # Stopped at the seventh check: after the four updates of the first epoch, and one or two of the second.
    stopped = fit_run(tmp_path / "stopped", config, 6)
    assert len(stopped.metrics()) == 1
    assert_similar(plain, fit_run(stopped.path, config))
    assert stopped.status()["caches"]["features"].startswith("cache: host")


def test_features_of_augmented_images_are_not_cached(shards: Path, tmp_path: Path) -> None:
    config = create_config(shards, freeze=["of_pixels", "hidden"], epochs=1, augment={"flip": True})
    loop = Loop(config, create_run(tmp_path / "run", config), WorkerContext())
    assert loop.learner.stage_network.network.input.shape == (None, 12, 12, 3)
    assert "features" not in loop.run.status()["caches"]


@pytest.mark.slow
def test_a_frozen_base_keeps_its_weights(shards: Path, tmp_path: Path) -> None:
    """Moving statistics included; with cached features the head learns the same."""
    keras.utils.set_random_seed(3)
    donor = build_model("mobilenetv3small", Task((32, 32, 3), 5, (120.0,) * 3, (60.0,) * 3))
    rng = np.random.default_rng(0)
    donor.set_weights([w + rng.uniform(0, 0.1, w.shape).astype(np.float32) for w in donor.get_weights()])
    donor.save(tmp_path / "donor.keras")
    recipe: dict[str, Any] = {
        "model": "mobilenetv3small",
        "weights": str(tmp_path / "donor.keras"),
        "augment": None,
        "ema": None,
        "freeze": "*",
        "stages": [{"epochs": 3, "train": "logits"}],
        "optimizer": {"name": "sgd", "learning_rate": 0.01},
    }
    runs = []
    for cache in ("none", "auto"):
        config = config_for(shards, data={"image_size": [32, 32], "cache": cache}, **recipe)
        runs.append(fit_run(tmp_path / cache, config))
    assert_similar(*runs)
    base = donor.get_weights()[:-2]
    weights = read_checkpoint(runs[0], "epoch-0003", "model")
    assert len(weights) >= len(base) + 2
    for before, after in zip(base, weights, strict=False):
        np.testing.assert_array_equal(after, before)
