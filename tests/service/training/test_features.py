"""Features of frozen layers: where a network is cut, and that keeping them changes nothing."""

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
SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}
STAGES = [
    {"epochs": 1, "freeze": ["of_pixels", "hidden"]},
    {"epochs": 2, "freeze": "of_pixels", "learning_rate": 0.02},
]
KEPT = {"model": "tiny_normalized", "augment": None, "optimizer": SGD, "ema": 0.9}


def branched() -> keras.Model:
    """Two branches meet in `sum`; dropout stands behind `late`."""
    image = keras.Input((4, 4, 3), name="image")
    x = L.Conv2D(2, 1, name="stem")(L.Rescaling(1 / 255)(image))
    x = L.Add(name="sum")([L.Conv2D(2, 1, name="left")(x), L.BatchNormalization(name="right")(x)])
    x = L.Dropout(0.5, name="drop")(L.Dense(4, name="late")(L.Flatten(name="flat")(x)))
    return keras.Model(image, add_head(L.Dense(3, name="last")(x), 2))


@pytest.mark.parametrize(
    ("freeze", "end"),
    [
        ((), None),  # scaled pixels are no features
        (("last",), None),
        (("right",), None),
        (("stem",), "stem"),
        (("stem", "left"), "stem"),  # between the branches no single tensor decides
        (("stem", "left", "right"), "flat"),  # on from `sum` to the last place before something learns
        (("stem", "left", "right", "late"), "late"),  # but not behind what draws
        (("stem", "left", "right", "late", "last"), "late"),
        (("stem", "right", "late"), "stem"),
    ],
)
def test_where_a_network_is_cut(freeze: tuple[str, ...], end: str | None) -> None:
    model = branched()
    freeze_layers(model, freeze)
    cut = find_frozen_features(model)
    assert (cut is None) == (end is None)
    if end:
        assert cut is model.get_layer(end).output


def test_dropout_that_drops_nothing_is_no_end() -> None:
    image = keras.Input((2,))
    model = keras.Model(image, add_head(L.Dropout(0.0, name="none")(L.Dense(2, name="frozen")(image)), 2))
    freeze_layers(model, ("frozen",))
    assert find_frozen_features(model) is model.get_layer("none").output


def test_a_layer_that_runs_twice_is_behind_the_cut_until_it_has() -> None:
    image, twice = keras.Input((3,)), L.Dense(3, name="twice")
    model = keras.Model(image, add_head(twice(twice(image)), 2))
    freeze_layers(model, ("twice",))
    assert find_frozen_features(model) is model.get_layer("logits").input


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_shards(tmp_path_factory.mktemp("features") / "shards")


def config(shards: Path, cache: str = "auto", **changes: Any) -> RunConfig:
    return config_for(shards, data={"image_size": [12, 12], "cache": cache}, **(KEPT | changes))


def same(one: Run, other: Run) -> None:
    for expected, found in zip(
        read_checkpoint(one, "epoch-0003"), read_checkpoint(other, "epoch-0003"), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    for ours, theirs in zip(one.metrics(), other.metrics(), strict=True):
        for name in ("loss", "accuracy", "val_loss", "val_accuracy", "val_auc"):
            assert theirs[name] == pytest.approx(ours[name], abs=1e-5)


def test_keeping_features_changes_nothing(shards: Path, tmp_path: Path) -> None:
    """Of two stages with another front each, the last batch padded."""
    kept, plain = (
        fit_run(tmp_path / cache, config(shards, cache, stages=STAGES)) for cache in ("auto", "none")
    )
    same(plain, kept)
    assert "features" not in plain.status()["caches"]
    told = [kept.status()["caches"]["features"], kept.status()["notices"][-1]]
    assert told[0].startswith("cache: host (0.0 MB of features of frozen layers, up to hidden; ")
    assert told[1].startswith("features: cache: host (0.1 MB of features of frozen layers, up to flatten")


def test_with_features_the_front_is_not_run(shards: Path, tmp_path: Path) -> None:
    settings = config(shards, freeze=["of_pixels", "hidden"], epochs=1)
    loop = Loop(settings, create_run(tmp_path / "run", settings), WorkerContext())
    assert loop.learner.stage_network.network.input.shape == (None, 8)
    loop.learner.model.get_layer("hidden").kernel.assign(np.full((432, 8), np.nan))  # computed before
    loop.run_epochs()
    assert np.isfinite([loop.run.metrics()[0][name] for name in ("loss", "val_loss")]).all()


def test_a_stage_sees_the_features_of_what_was_learned_before_it(shards: Path, tmp_path: Path) -> None:
    """Also where the run is taken up within it: not those of the first weights."""
    stages = [{"epochs": 1}, {"epochs": 2, "freeze": ["of_pixels", "hidden"]}]
    plain = fit_run(tmp_path / "plain", config(shards, "none", stages=stages))
    kept = fit_run(tmp_path / "kept", config(shards, stages=stages))
    same(plain, kept)
    looks = 6  # four updates of the first epoch, then two of the second
    stopped = fit_run(tmp_path / "stopped", config(shards, stages=stages, steps_per_call=1), looks)
    assert len(stopped.metrics()) == 1
    same(plain, fit_run(stopped.path, config(shards, stages=stages, steps_per_call=1)))
    assert stopped.status()["caches"]["features"].startswith("cache: host")


def test_nothing_is_kept_where_images_change(shards: Path, tmp_path: Path) -> None:
    settings = config(shards, freeze=["of_pixels", "hidden"], epochs=1, augment={"flip": True})
    loop = Loop(settings, create_run(tmp_path / "run", settings), WorkerContext())
    assert loop.learner.stage_network.network.input.shape == (None, 12, 12, 3)
    assert "features" not in loop.run.status()["caches"]


@pytest.mark.slow
def test_a_frozen_base_stays_what_it_was(shards: Path, tmp_path: Path) -> None:
    """Moving statistics among it, and where it runs in every step; with its features kept the head learns the same."""
    keras.utils.set_random_seed(3)
    donor = build_model("mobilenetv3small", Task((32, 32, 3), 5, (120.0,) * 3, (60.0,) * 3))
    donor.set_weights(
        [
            w + np.random.default_rng(0).uniform(0, 0.1, w.shape).astype(np.float32)
            for w in donor.get_weights()
        ]
    )
    donor.save(tmp_path / "donor.keras")
    recipe: dict[str, Any] = {
        "model": "mobilenetv3small",
        "weights": str(tmp_path / "donor.keras"),
        "augment": None,
        "ema": None,
    }
    recipe |= {
        "freeze": "*",
        "stages": [{"epochs": 3, "train": "logits"}],
        "optimizer": {"name": "sgd", "learning_rate": 0.01},
    }
    runs = []
    for cache in ("none", "auto"):
        settings = config_for(shards, data={"image_size": [32, 32], "cache": cache}, **recipe)
        runs.append(fit_run(tmp_path / cache, settings))
    same(*runs)
    expected = donor.get_weights()[:-2]
    found = read_checkpoint(runs[0], "epoch-0003", "model")
    for before, after in zip(expected, found, strict=False):
        np.testing.assert_array_equal(after, before)
    assert len(found) >= len(expected) + 2
