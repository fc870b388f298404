"""Which devices train, which batches they get, and the error for a batch that they cannot share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tensorflow as tf
from training_samples import ROOT, config_for, noise_shards

from pipelines.errors import ConfigError
from pipelines.input.batches import Batches
from pipelines.records import Batch
from service.training.strategy import (
    WorkerContext,
    choose_strategy,
    distribute_batches,
    distribute_eager_batches,
)


def test_one_device_needs_no_strategy() -> None:
    assert choose_strategy(5, WorkerContext()) is tf.distribute.get_strategy()


def test_a_batch_that_does_not_divide_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [tf.config.LogicalDevice(f"/cpu:{i}", "CPU") for i in range(4)]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: devices if kind == "CPU" else [])
    with pytest.raises(ConfigError, match="use 28 or 32"):
        choose_strategy(30, WorkerContext())


def test_only_worker_0_writes() -> None:
    assert [WorkerContext(rank, 2).is_chief for rank in (0, 1)] == [True, False]


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


ON_ONE_CORE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from service.training.strategy import use_cores
import tensorflow as tf
use_cores()
print(tf.config.threading.get_inter_op_parallelism_threads())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process cannot be kept to one core here")
def test_two_operations_run_concurrently_on_one_core() -> None:
    """On a single thread the step runs while the next batch is requested, and counts as waiting for input."""
    result = subprocess.run(
        [sys.executable, "-c", ON_ONE_CORE],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert result.stdout.split() == ["2"], result.stderr
