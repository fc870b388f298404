"""Which devices train, and the error for a batch that they cannot share."""

from __future__ import annotations

import pytest
import tensorflow as tf

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
