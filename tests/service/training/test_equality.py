"""One process, two devices, two processes: the same training, to the rounding of the sums."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from shard_samples import record, write_shards
from training_samples import (
    config_for,
    fit_run,
    read_logged_rows,
    create_run,
    noise_shards,
    read_checkpoint,
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
    "frozen": {
        "freeze": "hidden",
        "optimizer": SGD,
        "augment": None,
    },  # one replica keeps features, several do not
}
ALONE: dict[str, dict[str, Any]] = {  # what one process does otherwise, or not at all
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
LOOKS = 7  # five in the first epoch; the eighth, after two steps of the second, says stop
GREYS = (100, 200)
WHITE = 7  # a row that falls to the second replica when the scale of the loss has settled
PLACES = {"two devices": (1, 2), "two workers": (2, 1)}
Runs = dict[tuple[str, str], Run]


def config(folder: Path, name: str) -> RunConfig:
    return config_for(
        folder / {"replicas": "greys", "overflow": "white"}.get(name, "noise"),
        **(RECIPES | ALONE | {"stopped": STOPPED})[name],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("equality")
    noise_shards(folder / "noise")
    noise_shards(folder / "white", white=WHITE)
    greys = [
        record(np.full((12, 12, 3), grey, np.uint8), label, str(grey)) for label, grey in enumerate(GREYS)
    ]
    write_shards(folder / "greys", ("dark", "bright"), {"train": greys})
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> Runs:
    """Every run in every place, by place and name."""
    found: Runs = {}
    with (
        ThreadPoolExecutor() as aside
    ):  # beside each other: most of the time is tracing, which takes one core
        training = []
        for place, (workers, devices) in PLACES.items():
            names = [*RECIPES, *ALONE, *(["stopped"] if workers > 1 else [])]
            elsewhere = {
                (place, name): create_run(folder / place / name, config(folder, name)) for name in names
            }
            orders = [
                f"{run.path}@{LOOKS}" if name == "stopped" else run.path
                for (_, name), run in elsewhere.items()
            ]
            training.append(aside.submit(train_in_processes, orders, workers, devices))
            found |= elsewhere
        found |= {
            ("one", name): fit_run(folder / "one" / name, config(folder, name))
            for name in [*RECIPES, "stopped"]
        }
        for place in training:
            place.result()
    return found


def last(run: Run) -> str:
    return f"epoch-{run.config()['epochs']:04d}"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_learned_is_what_one_process_learns(runs: Runs, place: str, recipe: str) -> None:
    one, other = runs["one", recipe], runs[place, recipe]
    rounding, relative = (
        (1e-5, 1e-5) if recipe == "accumulated" else (1e-6, 0)
    )  # its variance is a difference of large numbers
    for group in ("model", "optimizer", "training"):
        for expected, found in zip(
            read_checkpoint(one, last(one), group), read_checkpoint(other, last(other), group), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=relative, atol=rounding)
    assert abs(one.metrics()[-1]["loss"] - one.metrics()[0]["loss"]) > 0.01  # something was learned
    for ours, theirs in zip(one.metrics(), other.metrics(), strict=True):
        for name in ("loss", "accuracy", "learning_rate", "val_loss", "val_accuracy", "val_auc"):
            assert theirs[name] == pytest.approx(ours[name], abs=rounding)


@pytest.mark.parametrize("place", PLACES)
def test_features_are_kept_by_one_replica_alone(runs: Runs, place: str) -> None:
    assert runs["one", "frozen"].status()["caches"]["features"].startswith("cache: host (")
    assert (
        runs[place, "frozen"].status()["caches"]["features"]
        == "cache: none (features are kept for one replica alone)"
    )


def worker(run: Run, rank: int = 0) -> dict[str, Any]:
    return dict(json.loads((run.path / f"worker-{rank}.json").read_text()))


@pytest.mark.parametrize("name", [*RECIPES, *ALONE])
def test_all_replicas_end_alike_after_one_trace(runs: Runs, name: str) -> None:
    devices, workers = (
        worker(runs["two devices", name]),
        [worker(runs["two workers", name], rank) for rank in (0, 1)],
    )
    assert [found["traces"] for found in (devices, *workers)] == [1, 1, 1]
    assert len(devices["replicas"]) == 2
    assert len(set(devices["replicas"])) == 1
    assert workers[0]["replicas"] == workers[1]["replicas"]


@pytest.mark.parametrize("place", PLACES)
def test_averaged_statistics_are_the_mean_of_those_of_the_replicas(runs: Runs, place: str) -> None:
    run = runs[place, "replicas"]
    mean, variance = read_checkpoint(run, last(run), "model")[2:4]  # after gamma and beta
    np.testing.assert_allclose(mean, np.full(3, 0.01 * np.mean(GREYS) / 255), rtol=1e-5)
    np.testing.assert_allclose(
        variance, np.full(3, 0.99), rtol=1e-6
    )  # each replica saw one grey, which does not vary


@pytest.mark.parametrize("place", PLACES)
def test_every_replica_drops_something_else(runs: Runs, folder: Path, place: str) -> None:
    run, settings = runs[place, "replicas"], config(folder, "replicas")
    fresh = build_network(
        settings, tf.distribute.get_strategy(), Batches(settings.shards, "train", settings.data, 2)
    )
    change = (read_checkpoint(run, last(run), "model")[4] - fresh.get_layer("logits").kernel.numpy())[
        : 12 * 12 * 3
    ]
    # each image is one grey, on a replica of its own: a weight has learned of none, of one, of the other or of both
    assert len(np.unique(change.round(4))) == 4


@pytest.mark.parametrize("place", PLACES)
def test_an_overflow_halves_the_scale_and_changes_nothing_else(runs: Runs, place: str) -> None:
    run = runs[place, "overflow"]
    updates, (scale, good) = (
        int(read_checkpoint(run, last(run), "optimizer")[0]),
        read_checkpoint(run, last(run), "training"),
    )
    overflows = 12 - updates
    assert 3 < overflows < 12  # one an epoch is no overflow: the white image gives no number
    assert all(np.isfinite(array).all() for array in read_checkpoint(run, last(run)))
    assert scale == INITIAL_SCALE / 2**overflows
    assert good <= updates
    assert not any("skipped" in epoch for epoch in run.metrics())


def test_two_workers_become_one_within_an_epoch(
    runs: Runs, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, settings = runs["two workers", "stopped"], config(folder, "stopped")
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [
        "epoch-0001",
        "epoch-0001-step-0000002",
    ]
    monkeypatch.setenv(ROWS_LOG, "1")
    fit_run(run.path, settings)
    batches = Batches(settings.shards, "train", settings.data, 8, seed=5)
    expected = {
        (epoch, step): batches.find_rows(epoch, step).tolist() for epoch in (1, 2, 3) for step in range(4)
    }
    assert read_logged_rows(run) == expected
    one = runs["one", "stopped"]
    for ours, theirs in zip(read_checkpoint(one, last(one)), read_checkpoint(run, last(run)), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-6)
    for ours, theirs in zip(one.metrics(), run.metrics(), strict=True):
        assert [theirs[name] for name in ("loss", "accuracy")] == pytest.approx(
            [ours[name] for name in ("loss", "accuracy")], abs=1e-6
        )
