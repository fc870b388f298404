"""One process, two devices, two processes: the same training, up to the rounding of sums."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from shard_samples import make_record, write_shards
from training_samples import (
    IMAGENET_RECIPE,
    config_for,
    create_run,
    fit_run,
    noise_shards,
    read_checkpoint,
    read_logged_rows,
    read_worker,
    train_in_processes,
)

from pipelines.input.batches import Batches
from service.config import RunConfig
from service.runs import Run
from service.training.learner import build_network
from service.training.loss_scale import INITIAL_SCALE
from service.training.telemetry import ROWS_LOG

SGD = {"name": "sgd", "learning_rate": 0.02}
RECIPES: dict[str, dict[str, Any]] = {
    "everything": {
        "optimizer": SGD | {"momentum": 0.9, "weight_decay": 0.01, "clip_norm": 0.5},
        "schedule": {"name": "cosine", "warmup_steps": 3},
        "ema": 0.9,
        "label_smoothing": 0.1,
        "class_weights": {"class0": 2.0},
        "augment": {"rotation": 20, "flip": True, "erase": 0.5, "mixup": 0.4},
        "epochs": 5,  # of 4 updates
        "steps_per_call": 3,
    },
    "accumulated": {
        "model": "tiny_normalized",
        "batch_norm": "synchronized",
        "precise_batch_norm": 16,
        "optimizer": SGD,
        "accumulate": 3,
        "augment": None,
    },
    "small": {
        "model": "tiny_pooled",
        "augment": {"size": [8, 8], "flip": True},
        "optimizer": SGD | {"learning_rate": 0.1},
    },
    "cached": {"data": {"image_size": [12, 12], "cache": "device"}, "optimizer": SGD},
    "imagenet": IMAGENET_RECIPE,
    # A single replica caches features, several do not.
    "frozen": {"freeze": "hidden", "optimizer": SGD, "augment": None},
}
# Recipes whose result depends on the number of replicas.
REPLICA_RECIPES: dict[str, dict[str, Any]] = {
    "replicas": {
        "model": "tiny_replicas",
        "epochs": 1,
        "augment": None,
        "global_batch": 2,
        "optimizer": SGD | {"learning_rate": 1.0},
    },
    "overflow": {
        "model": "tiny_fragile",
        "precision": "mixed_float16",
        "class_weights": {"class0": 32.0},
        "optimizer": SGD,
        "augment": None,
    },
}
STOPPED = {"optimizer": SGD | {"momentum": 0.9}, "steps_per_call": 1, "augment": None}
CHECKS = 7  # five in the first epoch; the eighth, after two steps of the second, finds a stop request
GREYS = (100, 200)
WHITE = 7  # a row that the second replica gets when the loss scale has settled
SETUPS = {"two devices": (1, 2), "two workers": (2, 1)}  # workers, and devices of each
LARGE_RECIPES = ["everything", "cached"]
LARGE_SETUPS = {"two workers of two devices": (2, 2), "four devices": (1, 4)}
Runs = dict[tuple[str, str], Run]


def create_config(folder: Path, name: str) -> RunConfig:
    shards = {"replicas": "greys", "overflow": "white"}.get(name, "noise")
    recipes = RECIPES | REPLICA_RECIPES | {"stopped": STOPPED}
    settings = recipes[name]
    if name == "stopped":
        mix = {str(folder / "noise"): 2, str(folder / "white"): 1}
        data = {"image_size": [12, 12], "window": 4, "lanes": 2, "mix": mix, "epoch_images": 27}
        settings = settings | {"data": data}
    return config_for(folder / shards, **settings)


def list_names(setup: str) -> list[str]:
    """Returns the runs of a setup; with two workers, one run is stopped on the way."""
    if setup in LARGE_SETUPS:
        return LARGE_RECIPES
    names = [*RECIPES, *REPLICA_RECIPES]
    return [*names, "stopped"] if setup == "two workers" else names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("equality")
    noise_shards(folder / "noise", shard_rows=4)
    noise_shards(folder / "white", white=WHITE)
    greys = []
    for label, grey in enumerate(GREYS):
        greys.append(make_record(np.full((12, 12, 3), grey, np.uint8), label, str(grey)))
    write_shards(folder / "greys", ("dark", "bright"), {"train": greys})
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> Runs:
    """Every run in every setup, by setup and name."""
    runs: Runs = {}
    trainings: list[Future[None]] = []
    # In parallel: most of the time is tracing, which uses one core.
    with ThreadPoolExecutor() as executor:
        for setup, (workers, devices) in (SETUPS | LARGE_SETUPS).items():
            arguments = []
            for name in list_names(setup):
                run = create_run(folder / setup / name, create_config(folder, name))
                runs[setup, name] = run
                arguments.append(f"{run.path}@{CHECKS}" if name == "stopped" else run.path)
            trainings.append(executor.submit(train_in_processes, arguments, workers, devices))
        for name in [*RECIPES, "stopped"]:
            runs["one", name] = fit_run(folder / "one" / name, create_config(folder, name))
        for training in trainings:
            training.result()
    return runs


def last_checkpoint(run: Run) -> str:
    return f"epoch-{run.config()['epochs']:04d}"


@pytest.mark.parametrize(
    ("setup", "recipe"), [*product(SETUPS, RECIPES), *product(LARGE_SETUPS, LARGE_RECIPES)]
)
def test_several_replicas_learn_what_one_process_learns(runs: Runs, setup: str, recipe: str) -> None:
    one = runs["one", recipe]
    other = runs[setup, recipe]
    # The variance of precise statistics is a difference of large numbers.
    absolute, relative = (1e-5, 1e-5) if recipe == "accumulated" else (1e-6, 0)
    for group in ("model", "optimizer", "training"):
        pairs = zip(
            read_checkpoint(one, last_checkpoint(one), group),
            read_checkpoint(other, last_checkpoint(other), group),
            strict=True,
        )
        for expected, array in pairs:
            np.testing.assert_allclose(array, expected, rtol=relative, atol=absolute)
    assert abs(one.metrics()[-1]["loss"] - one.metrics()[0]["loss"]) > 0.01  # something was learned
    for expected, metrics in zip(one.metrics(), other.metrics(), strict=True):
        for name in ("loss", "accuracy", "learning_rate", "val_loss", "val_accuracy", "val_auc"):
            assert metrics[name] == pytest.approx(expected[name], abs=absolute)


@pytest.mark.parametrize(
    ("setup", "recipe"), [*product(SETUPS, RECIPES), *product(LARGE_SETUPS, LARGE_RECIPES)]
)
def test_several_replicas_record_the_gradients_of_the_global_batch(
    runs: Runs, setup: str, recipe: str
) -> None:
    for expected, record in zip(runs["one", recipe].layers(), runs[setup, recipe].layers(), strict=True):
        assert record["layers"].keys() == expected["layers"].keys()
        for layer, norms in expected["layers"].items():
            assert norms["gradients"] > 0
            assert record["layers"][layer] == pytest.approx(norms, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("setup", SETUPS)
def test_features_are_cached_with_a_single_replica_only(runs: Runs, setup: str) -> None:
    features = [runs[place, "frozen"].status()["caches"]["features"] for place in ("one", setup)]
    assert features[0].startswith("cache: host (")
    assert features[1] == "cache: none (features are kept for one replica alone)"


@pytest.mark.parametrize("name", [*RECIPES, *REPLICA_RECIPES])
def test_all_replicas_end_alike_after_one_trace(runs: Runs, name: str) -> None:
    devices = read_worker(runs["two devices", name])
    workers = [read_worker(runs["two workers", name], rank) for rank in (0, 1)]
    assert [worker["traces"] for worker in (devices, *workers)] == [1, 1, 1]
    assert len(devices["replicas"]) == 2
    assert len(set(devices["replicas"])) == 1
    assert workers[0]["replicas"] == workers[1]["replicas"]


@pytest.mark.parametrize("setup", SETUPS)
def test_averaged_statistics_are_the_mean_over_the_replicas(runs: Runs, setup: str) -> None:
    run = runs[setup, "replicas"]
    mean, variance = read_checkpoint(run, last_checkpoint(run), "model")[2:4]  # after gamma and beta
    np.testing.assert_allclose(mean, np.full(3, 0.01 * np.mean(GREYS) / 255), rtol=1e-5)
    # Each replica saw a single grey, which does not vary.
    np.testing.assert_allclose(variance, np.full(3, 0.99), rtol=1e-6)


@pytest.mark.parametrize("setup", SETUPS)
def test_every_replica_has_its_own_dropout(runs: Runs, folder: Path, setup: str) -> None:
    run = runs[setup, "replicas"]
    config = create_config(folder, "replicas")
    train = Batches(config.shards, "train", config.data, 2)
    before = build_network(config, tf.distribute.get_strategy(), train).get_layer("logits").kernel.numpy()
    after = read_checkpoint(run, last_checkpoint(run), "model")[4]
    change = (after - before)[: 12 * 12 * 3]  # the weights of the pixels behind dropout
    # Each image is one grey, on a replica of its own: a weight learned from none, either or both of them.
    assert len(np.unique(change.round(4))) == 4


@pytest.mark.parametrize("setup", SETUPS)
def test_an_overflow_halves_the_scale_and_changes_nothing_else(runs: Runs, setup: str) -> None:
    run = runs[setup, "overflow"]
    updates = int(read_checkpoint(run, last_checkpoint(run), "optimizer")[0])
    scale, finite_updates = read_checkpoint(run, last_checkpoint(run), "training")
    skipped = 12 - updates
    assert 3 < skipped < 12  # one in each epoch is no overflow: the white image gives NaN
    assert all(np.isfinite(array).all() for array in read_checkpoint(run, last_checkpoint(run)))
    assert scale == INITIAL_SCALE / 2**skipped
    assert finite_updates <= updates
    assert not any("skipped" in epoch for epoch in run.metrics())


def test_two_workers_become_one_within_an_epoch(
    runs: Runs, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs["two workers", "stopped"]
    config = create_config(folder, "stopped")
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [
        "epoch-0001",
        "epoch-0001-step-0000002",
    ]
    monkeypatch.setenv(ROWS_LOG, "1")
    fit_run(run.path, config)
    batches = Batches(config.shards, "train", config.data, 8, seed=5)
    assert read_logged_rows(run) == {
        (epoch, step): batches.find_rows(epoch, step).tolist() for epoch in (1, 2, 3) for step in range(4)
    }
    one = runs["one", "stopped"]
    pairs = zip(
        read_checkpoint(one, last_checkpoint(one)), read_checkpoint(run, last_checkpoint(run)), strict=True
    )
    for expected, array in pairs:
        np.testing.assert_allclose(array, expected, rtol=0, atol=1e-6)
    for expected, metrics in zip(one.metrics(), run.metrics(), strict=True):
        assert metrics["loss"] == pytest.approx(expected["loss"], abs=1e-6)
        assert metrics["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-6)
