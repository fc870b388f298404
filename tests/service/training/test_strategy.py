"""Which devices train, what they are fed, and what a batch that they cannot share is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from training_samples import ROOT, config_for, new_run, noise_shards

from pipelines.errors import ConfigError
from pipelines.input.batches import Batches
from service.training.strategy import WorkerContext, choose_strategy, distributed, distributed_eagerly


def test_one_device_needs_no_strategy() -> None:
    assert choose_strategy(5, WorkerContext()) is tf.distribute.get_strategy()


def test_a_batch_that_does_not_divide_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [tf.config.LogicalDevice(f"/cpu:{i}", "CPU") for i in range(4)]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: devices if kind == "CPU" else [])
    with pytest.raises(ConfigError, match="use 28 or 32"):
        choose_strategy(30, WorkerContext())


def test_worker_0_alone_writes() -> None:
    assert [WorkerContext(rank, 2).writes for rank in (0, 1)] == [True, False]


@pytest.mark.parametrize("feed", [distributed, distributed_eagerly])
def test_epochs_follow_each_other_from_any_step_on(tmp_path: Path, feed: object) -> None:
    config = config_for(noise_shards(tmp_path / "shards", rows=11, held_out=0))
    batches = Batches(config.shards, "train", config.data, 4, seed=5)
    found = [
        batch["row"].numpy().tolist()
        for batch in feed(tf.distribute.get_strategy(), batches, WorkerContext(), 2, 1, 2)
    ]
    assert found == [
        batches.rows_of(epoch, step).tolist() for epoch, step in ((2, 1), (2, 2), (3, 0), (3, 1), (3, 2))
    ]
    assert found[1][3] == -1  # padding


ON_ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from service.config import RunConfig
from service.runs import Run
from service.training.loop import fit
from service.training.strategy import use_cores
use_cores()
run = Run(sys.argv[1])
fit(RunConfig.model_validate(run.config()), run)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process cannot be kept to one core here")
def test_on_one_core_computing_is_not_taken_for_waiting(tmp_path: Path) -> None:
    """With one thread between operations a third of the second epoch and more seemed to be waiting for input that lay ready."""
    data = {"image_size": [128, 128], "cache": "host"}
    shards = noise_shards(tmp_path / "shards", rows=96, held_out=0)
    config = config_for(shards, model="cats_dogs_small", data=data, epochs=2)
    run = new_run(tmp_path / "run", config)
    subprocess.run(
        [sys.executable, "-c", ON_ONE_CORE, str(run.path)],
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert run.metrics()[1]["input_wait"] < 0.15
