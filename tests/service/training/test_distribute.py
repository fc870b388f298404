"""Which batches each replica gets, and on which device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from training_samples import ROOT, config_for, create_run, fit_run, noise_shards, read_checkpoint

from pipelines.input import dali
from pipelines.input.batches import Batches
from pipelines.input.cache import CacheBudget
from pipelines.records import Batch
from service.devices import LOGICAL_DEVICES
from service.runs import Run
from service.training.distribute import distribute_batches, distribute_eager_batches
from service.training.evaluation import Evaluation
from service.training.strategy import WorkerContext

SCRIPT = Path(__file__).with_name("placement_script.py")
SOURCES = ["tf.data", "host cache", "device cache", "DALI"]
RECIPE: dict[str, Any] = {
    "model": "tiny_normalized",
    "batch_norm": "synchronized",
    "precise_batch_norm": 16,
    "optimizer": {"name": "sgd", "learning_rate": 0.02, "momentum": 0.9},
    "accumulate": 2,
    "ema": 0.9,
    "epochs": 2,
}


@pytest.mark.parametrize("distribute", [distribute_batches, distribute_eager_batches])
def test_epochs_follow_each_other_from_any_step_on(
    tmp_path: Path, distribute: Callable[..., Iterator[Batch]]
) -> None:
    config = config_for(noise_shards(tmp_path / "shards", rows=11, held_out=0))
    batches = Batches(config.shards, "train", config.data, 4, seed=5)
    iterator = distribute(tf.distribute.get_strategy(), batches, WorkerContext(), 2, 1, 2)
    rows = [batch["row"].numpy().tolist() for batch in iterator]
    steps = ((2, 1), (2, 2), (3, 0), (3, 1), (3, 2))  # epoch and step
    assert rows == [batches.find_rows(epoch, step).tolist() for epoch, step in steps]
    assert rows[1][3] == -1  # padding


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_shards(tmp_path_factory.mktemp("distribute") / "shards")


@pytest.fixture(scope="module")
def replicas(shards: Path) -> tuple[Run, dict[str, Any]]:
    """A run on two replicas, which decodes with DALI if it is installed, and where everything was."""
    backend = "dali" if dali.is_available() else "tfdata"
    data = {"image_size": [12, 12], "backend": backend, "cache": "none"}
    run = create_run(shards.parent / "replicas", config_for(shards, data=data, **RECIPE))
    out = shards.parent / "found.json"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", LOGICAL_DEVICES: "2"}
    command = [sys.executable, str(SCRIPT), str(run.path), str(out)]
    subprocess.run(command, check=True, env=environment, timeout=600)
    return run, json.loads(out.read_text())


@pytest.mark.parametrize("purpose", ["training", "evaluation"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_array_of_a_batch_is_on_the_device_of_its_replica(
    replicas: tuple[Run, dict[str, Any]], shards: Path, source: str, purpose: str
) -> None:
    if source == "DALI" and not dali.is_available():
        pytest.skip("needs NVIDIA DALI (nvidia-dali-cuda120)")
    found = replicas[1]["batches"][f"{source}, {purpose}"]
    images = set() if source == "device cache" else {"image"}
    assert found["devices"].keys() == {"label", "weight", "row", "affine"} | images
    for name, devices in found["devices"].items():
        assert [device[-5:] for device in devices] == ["CPU:0", "CPU:1"], name
    config = config_for(shards)
    rows = Batches(shards, "train", config.data, 8, seed=5).find_rows(1, 0).tolist()
    assert found["rows"] == [rows[:4], rows[4:]]


def test_every_variable_has_a_part_on_every_device(replicas: tuple[Run, dict[str, Any]]) -> None:
    _, found = replicas
    assert len(found["variables"]) > 20
    for name, devices in found["variables"].items():
        assert [device[-5:] for device in devices] == ["CPU:0", "CPU:1"], name


def test_no_iterator_is_tuned(replicas: tuple[Run, dict[str, Any]]) -> None:
    """An iterator with a tuner may need a minute to end, on each device."""
    tuned = replicas[1]["tuned"]
    assert len(tuned) >= 2  # one for each device
    assert not any(tuned)


def test_two_pipelines_train_like_one(replicas: tuple[Run, dict[str, Any]], shards: Path) -> None:
    run, _ = replicas
    data = {"image_size": [12, 12], "backend": "tfdata", "cache": "none"}
    alone = fit_run(shards.parent / "alone", config_for(shards, data=data, **RECIPE))
    pairs = zip(read_checkpoint(alone, "epoch-0002"), read_checkpoint(run, "epoch-0002"), strict=True)
    for expected, array in pairs:
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-5)
    for expected_metrics, metrics in zip(alone.metrics(), run.metrics(), strict=True):
        for name in ("loss", "accuracy", "val_loss", "val_accuracy", "val_auc"):
            assert metrics[name] == pytest.approx(expected_metrics[name], abs=1e-5)


def test_an_evaluation_fills_its_cache_before_workers_wait_for_each_other(shards: Path) -> None:
    """A worker that is slow to fill it then delays the start, and no sum over the workers."""
    done: list[int] = []
    cache = CacheBudget(ram=10**8, gpu=0, progress=lambda rows, _: done.append(rows))
    data = config_for(shards, data={"image_size": [12, 12], "cache": "host"}).data
    batches = Batches(shards, "validation", data, 8, cache=cache)
    Evaluation(lambda images: images, tf.distribute.get_strategy(), batches)
    assert done == [10]
