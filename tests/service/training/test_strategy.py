"""Which devices train, and the error for a batch that they cannot share."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import tensorflow as tf
from training_samples import ROOT

from pipelines.errors import ConfigError
from service.training.strategy import WorkerContext, choose_strategy


def test_one_device_needs_no_strategy() -> None:
    assert choose_strategy(5, WorkerContext()) is tf.distribute.get_strategy()


def test_a_batch_that_does_not_divide_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [tf.config.LogicalDevice(f"/cpu:{i}", "CPU") for i in range(4)]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: devices if kind == "CPU" else [])
    with pytest.raises(ConfigError, match="use 28 or 32"):
        choose_strategy(30, WorkerContext())


def test_only_worker_0_writes() -> None:
    assert [WorkerContext(rank, 2).is_chief for rank in (0, 1)] == [True, False]


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
