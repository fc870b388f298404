"""Tasks of `predict` and `report` share GPUs and other tasks see none, on a Ray that believes it has two."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from report_samples import brightness_model, dim_and_bright, make_run, metrics

from pipelines import cluster
from pipelines.cluster import TaskResources, ray_session, run_tasks
from service.inference.datasets import Block, InferenceBatch, ShardDataset
from service.inference.interpretation import Interpretation, PixelTransform
from service.inference.jobs import InferenceJob, SavedModel, Throughput, run_inference
from service.inference.options import PredictOptions
from service.report import batch

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def cluster_with_gpus() -> Iterator[None]:
    """A Ray of this process with 4 CPUs, which believes that there are two GPUs."""
    start = ray.init
    # Other tests of this process may share a session, which would be used instead. Its folder stays.
    node = ray._private.worker._global_node
    folder = Path(node.get_temp_dir_path()).parent if node else None
    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CUDA_VISIBLE_DEVICES", "RAY_ADDRESS", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
            patch.delenv(name, raising=False)
        patch.setattr(ray, "init", lambda **options: start(**options, num_cpus=4, num_gpus=2))
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
        with ray_session():
            yield
    if folder:
        address = os.environ.get("RAY_ADDRESS")
        cluster._connect(address, None if address else folder)


def describe_devices() -> dict[str, Any]:
    """Describes what the task that calls it has requested, and what it sees."""
    import tensorflow as tf

    from pipelines.cpus import count_process_cpus

    return {
        "process": os.getpid(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "gpus": ray.get_runtime_context().get_assigned_resources().get("GPU"),
        "cpus": count_process_cpus(),
        "threads": tf.config.threading.get_intra_op_parallelism_threads(),
    }


@pytest.mark.slow
def test_tasks_of_predict_share_the_gpus(cluster_with_gpus: None, tmp_path: Path) -> None:
    def reduce(images: InferenceBatch, probabilities: np.ndarray) -> dict[str, Any]:
        return describe_devices()

    model = brightness_model()
    model.save(tmp_path / "model.keras")
    shards = dim_and_bright(tmp_path / "shards")
    saved = SavedModel("model.keras", (tmp_path / "model.keras").read_bytes(), None)
    job = InferenceJob(
        model=saved,
        options=PredictOptions(),
        interpretation=Interpretation(PixelTransform(), "logits", "", ""),
        dataset=ShardDataset(str(shards)),
        reduce=reduce,
    )
    blocks = [Block("train", start, start + 1) for start in range(6)]
    with closing(run_inference(job, None, blocks, 4, Throughput())) as results:
        seen = [described for _, (described,) in results]
    assert len(seen) == 6
    assert {described["visible"] for described in seen} <= {"0", "1"}
    assert {described["gpus"] for described in seen} == {0.5}
    assert {(described["cpus"], described["threads"]) for described in seen} == {(1, 1)}
    assert len({described["process"] for described in seen}) <= 4  # processes are reused, with their model


def test_tasks_of_report_share_the_gpus(
    cluster_with_gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = []
    run_real_tasks = batch.run_tasks

    def run_and_record(*args: Any, **options: Any) -> Any:
        requests.append(options["resources"])
        return run_real_tasks(*args, **options)

    monkeypatch.setattr(batch, "run_tasks", run_and_record)
    runs = tmp_path / "runs"
    shards = dim_and_bright(tmp_path / "shards")
    for name in ("a", "b", "c"):  # without a model, so that they end at once
        run = make_run(runs / name, shards, brightness_model(), metrics(1))
        run.model_path.unlink()
    outcomes = batch.report_all(runs)
    assert {outcome.state for outcome in outcomes} == {batch.FAILED}
    assert requests == [TaskResources(1, 0.5)]


def test_a_task_that_requests_no_gpu_sees_none(cluster_with_gpus: None) -> None:
    def describe() -> dict[str, Any]:
        return describe_devices()

    with closing(run_tasks(describe, [()] * 2, str, resources=TaskResources(2))) as results:
        seen = [described for _, described in results]
    assert {described["visible"] for described in seen} == {""}
    assert {described["gpus"] for described in seen} == {None}
    assert {described["cpus"] for described in seen} == {2}
