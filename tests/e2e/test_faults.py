"""Trainings that are killed, stopped and starved end like an undisturbed one, or in one sentence.

The cases are in `fault_cases`, `fault_nodes` and `fault_stores`; `make fault-table` runs all of them and
prints a table.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fault_cases as cases
import fault_nodes as nodes
import fault_stores as stores
import pytest
from fault_lab import Lab, open_lab

from pipelines.shards.manifest import load_manifest
from service.checkpoint import newest_checkpoint

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with a short path, because Ray puts sockets into it."""
    with tempfile.TemporaryDirectory(prefix="gb", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture(scope="module")
def lab(folder: Path) -> Iterator[Lab]:
    """A cluster with room for two workers."""
    (folder / "two").mkdir()
    with open_lab(folder / "two", 2) as lab:
        yield lab


@pytest.fixture
def small_lab(folder: Path) -> Iterator[Lab]:
    """A cluster with room for one worker, to which nodes can be added."""
    (folder / "one").mkdir()
    try:
        with open_lab(folder / "one", 1) as lab:
            yield lab
    finally:
        shutil.rmtree(folder / "one", ignore_errors=True)


@pytest.fixture
def lab_without_cluster(folder: Path) -> Iterator[Lab]:
    """No cluster: each run starts its own Ray."""
    (folder / "none").mkdir()
    try:
        with open_lab(folder / "none", 0) as lab:
            yield lab
    finally:
        shutil.rmtree(folder / "none", ignore_errors=True)


def test_a_killed_worker(lab: Lab) -> None:
    outcome = cases.kill_workers(lab, random.Random(1))
    assert (outcome.count, outcome.difference) == (1, 0)


@pytest.mark.slow
def test_sigterm(lab: Lab) -> None:
    assert cases.terminate_driver(lab).difference == 0


# Evaluation allocates 70 TB once the model has trained. The first epoch is not evaluated, so that it leaves a
# checkpoint.
HUNGRY = """
import keras
import tensorflow as tf
from keras import layers

@keras.saving.register_keras_serializable("hungry")
class Hungry(layers.Layer):
    has_trained = False

    def call(self, x, training=False):
        if training:
            Hungry.has_trained = True
        if training or not Hungry.has_trained:
            return x
        return x + tf.reduce_mean(tf.random.uniform([tf.shape(x)[0] * 2**21, 2**20]))

def build(task):
    image = keras.Input(task.shape)
    x = Hungry()(layers.Flatten()(layers.Rescaling(1 / 255)(image)))
    return keras.Model(image, layers.Dense(task.classes)(x))
"""
# Worker 1 fails with the error that TensorFlow raises for a GPU that has lost its memory.
FAULTY = """
import json
import os
import keras
import tensorflow as tf
from keras import layers

@keras.saving.register_keras_serializable("faulty")
class Faulty(layers.Layer):
    def call(self, x, training=False):
        worker = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)
        if training and worker == 1:
            raise tf.errors.InternalError(None, None, "CUDA_ERROR_ECC_UNCORRECTABLE: uncorrectable ECC error")
        return x

def build(task):
    image = keras.Input(task.shape)
    x = Faulty()(layers.Flatten()(layers.Rescaling(1 / 255)(image)))
    return keras.Model(image, layers.Dense(task.classes)(x))
"""


def write_model(lab: Lab, name: str, code: str) -> str:
    path = lab.folder / f"{name}.py"
    path.write_text(code)
    return f"model={path}:build"


@pytest.mark.slow
def test_too_little_memory_ends_a_local_run_in_one_sentence(lab_without_cluster: Lab) -> None:
    lab = lab_without_cluster
    model = write_model(lab, "hungry", HUNGRY)
    training = lab.train("hungry", "--local", model, "epochs=2", "evaluate_every=2")
    output = training.wait_for_exit(4)
    (sentence,) = (line for line in output.splitlines() if line.startswith("glassbox: "))
    assert "Expected enough memory on this machine. Received: error=ResourceExhaustedError: OOM" in sentence
    assert "smaller global_batch" in sentence

    status = training.run.status()
    assert status["state"] == "failed"
    assert sentence == f"glassbox: {status['reason']}"
    assert newest_checkpoint(training.run.checkpoints, load_manifest(lab.shards).digest()) is not None
    assert len(training.run.metrics()) == 1


@pytest.mark.slow
def test_a_failing_gpu_of_one_of_two_workers_ends_the_run_without_a_restart(lab: Lab) -> None:
    training = lab.train("faulty", "--workers", "2", write_model(lab, "faulty", FAULTY))
    output = training.wait_for_exit(4)
    assert "CUDA_ERROR_ECC_UNCORRECTABLE" in output
    assert "a worker was lost" not in output
    assert training.run.status()["state"] == "failed"


@pytest.mark.slow
def test_more_workers_than_there_is_room_for(lab_without_cluster: Lab) -> None:
    nodes.request_too_many_workers(lab_without_cluster)


@pytest.mark.slow
def test_a_damaged_row(lab: Lab) -> None:
    cases.damage_row(lab)


@pytest.mark.slow
def test_random_kills(lab: Lab) -> None:
    assert cases.kill_workers(lab, random.Random(2), kills=4, at_any_time=0.5, name="often").difference == 0


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_silent_worker(lab: Lab, rank: int) -> None:
    assert cases.stop_worker(lab, rank).difference == 0


@pytest.mark.slow
def test_a_worker_that_never_starts(lab: Lab) -> None:
    cases.stop_starting_worker(lab)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "damage", "tolerance"), [(1, False, 1e-5), (2, True, 0)])
def test_a_killed_driver(lab: Lab, workers: int, damage: bool, tolerance: float) -> None:
    assert cases.kill_driver(lab, workers, damage).difference <= tolerance


@pytest.mark.slow
def test_a_killed_driver_with_its_own_ray(lab_without_cluster: Lab) -> None:
    assert cases.kill_driver(lab_without_cluster, 2).difference == 0


@pytest.mark.slow
@pytest.mark.parametrize("case", [cases.diverge, cases.diverge_and_skip])
def test_nan(lab: Lab, case: cases.Case) -> None:
    case(lab)


@pytest.mark.slow
def test_a_full_disk(lab_without_cluster: Lab) -> None:
    if subprocess.run([*nodes.UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("needs permission to mount file systems")
    nodes.fill_disk(lab_without_cluster)


@pytest.mark.slow
def test_a_busy_cluster(small_lab: Lab) -> None:
    nodes.occupy_cluster(small_lab)


@pytest.mark.slow
def test_a_lost_node(small_lab: Lab) -> None:
    assert nodes.lose_node(small_lab).difference == 0


@pytest.mark.slow
def test_a_node_that_joins_and_is_lost(small_lab: Lab) -> None:
    assert nodes.add_and_lose_node(small_lab).difference < 1e-5


@pytest.mark.slow
def test_a_killed_server_and_its_restart(lab_without_cluster: Lab) -> None:
    assert stores.kill_server(lab_without_cluster).difference == 0


@pytest.mark.slow
def test_a_killed_download(lab_without_cluster: Lab) -> None:
    assert stores.kill_fetcher(lab_without_cluster).difference == 0


@pytest.mark.slow
def test_a_killed_driver_of_a_training_from_a_store(lab_without_cluster: Lab) -> None:
    assert stores.kill_driver_of_store(lab_without_cluster).difference == 0


@pytest.mark.slow
def test_a_full_disk_of_the_cache(lab_without_cluster: Lab) -> None:
    if subprocess.run([*nodes.UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("needs permission to mount file systems")
    assert stores.fill_cache_disk(lab_without_cluster).difference == 0
