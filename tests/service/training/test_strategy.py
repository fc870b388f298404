"""Which devices train, and the error for a batch that they cannot share."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import tensorflow as tf
from training_samples import ROOT

from pipelines.spec import AugmentSpec
from service.training.strategy import WorkerContext, choose_strategy

MIXED = {"mixup": 0.2}


def test_one_device_needs_no_strategy() -> None:
    assert choose_strategy(5, WorkerContext()) is tf.distribute.get_strategy()


@pytest.mark.parametrize(("global_batch", "augment", "replicas"), [(28, {}, 4), (30, {}, 3), (28, MIXED, 2)])
def test_as_many_of_the_devices_train_as_can_share_the_batch(
    monkeypatch: pytest.MonkeyPatch, global_batch: int, augment: dict[str, float], replicas: int
) -> None:
    devices = [tf.config.LogicalDevice(f"/cpu:{i}", "CPU") for i in range(4)]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: devices if kind == "CPU" else [])
    strategy = choose_strategy(global_batch, WorkerContext(), AugmentSpec.model_validate(augment))
    assert strategy.num_replicas_in_sync == replicas
    assert strategy.extended.worker_devices == tuple(
        f"/job:localhost/replica:0/task:0/device:CPU:{index}" for index in range(replicas)
    )


def test_only_worker_0_writes() -> None:
    assert [WorkerContext(rank, 2).is_chief for rank in (0, 1)] == [True, False]


def test_two_trainings_of_a_process_do_not_share_their_sums() -> None:
    code = """
import tensorflow as tf
from service.devices import configure_devices
from service.training.strategy import choose_strategy
configure_devices()
for size in (3, 5):
    strategy = choose_strategy(2)
    def add(): return tf.distribute.get_replica_context().all_reduce("sum", tf.ones(size))
    print(strategy.experimental_local_results(tf.function(lambda: strategy.run(add))())[0].numpy().sum())
"""
    environment = os.environ | {"GLASSBOX_LOGICAL_DEVICES": "2"}
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE
    ).stdout
    assert output.split() == ["6.0", "10.0"]
