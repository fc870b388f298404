"""Training in the current process: without Ray, and bit for bit what a worker of Ray trains."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_samples import ROOT, check_stops_at_every_call, config_for, noise_shards, read_checkpoint

from pipelines.errors import ConfigError, Interrupted
from service.config import RunConfig
from service.mirror import output
from service.runs import Run
from service.training import launch
from service.training.group import WorkerSpec

RECIPE: dict[str, Any] = {
    "model": "mnist_cnn",  # whose convolutions depend on the number of threads
    "data": {"image_size": [28, 28]},
    "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
    "ema": 0.9,
    "steps_per_call": 1,
    "keep_checkpoints": 3,
}
LAST = "epoch-0003"
# Trains or resumes runs one after the other, on a Ray of its own.
ON_RAY = """
import sys
from pipelines.cluster import ray_session
from service.config import RunConfig
from service.runs import Run
from service.training import launch

with ray_session():
    for path in sys.argv[1:]:
        launch.resume(path)
"""
LOCALLY = """
import sys
from pipelines.errors import GlassboxError
from service.training import launch

try:
    launch.resume(sys.argv[1], local=True)
except (GlassboxError, KeyboardInterrupt) as error:
    print(error)
    sys.exit(getattr(error, "exit_code", 1))
finally:
    print("ray imported:", "ray" in sys.modules)
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_shards(tmp_path_factory.mktemp("local") / "shards")


def assert_equal_runs(first: Run, second: Run) -> None:
    """Both ended with the same bits, and the same metrics but for those of time."""
    pairs = zip(read_checkpoint(first, LAST), read_checkpoint(second, LAST), strict=True)
    for expected, array in pairs:
        np.testing.assert_array_equal(array, expected)
    names = ("epoch", "loss", "accuracy", "learning_rate", "val_loss", "val_accuracy", "val_auc")
    metrics = [[[epoch[name] for name in names] for epoch in run.metrics()] for run in (first, second)]
    assert metrics[0] == metrics[1]


def copy_first_epoch(run: Run, path: Path) -> Run:
    """A copy of a run as it was after its first epoch."""
    shutil.copytree(run.path, path)
    copy = Run(path)
    for checkpoint in copy.checkpoints.iterdir():
        if checkpoint.name != "epoch-0001":
            shutil.rmtree(checkpoint)
    copy.write_metrics(run.metrics()[:1])
    copy.update_status(state="interrupted")
    return copy


def stop_within_an_epoch(config: RunConfig, path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that was trained locally and received SIGTERM in its second epoch."""
    # Checked before the first and after each of the four updates of an epoch.
    requests = chain([None] * 7, repeat("SIGTERM"))

    class StoppingRun(Run):
        def stop_requested(self) -> str | None:
            return next(requests)

    with monkeypatch.context() as patch, check_stops_at_every_call():
        patch.setattr(output, "Run", StoppingRun)
        with pytest.raises(Interrupted):
            launch.train(config, path, local=True)
    run = Run(path)
    assert sorted(checkpoint.name for checkpoint in run.checkpoints.iterdir()) == [
        "epoch-0001",
        "epoch-0001-step-0000002",
    ]
    assert run.status()["state"] == "interrupted"
    return run


@pytest.mark.slow
@pytest.mark.e2e
def test_local_training_and_a_worker_of_ray_continue_each_other_to_the_same_bits(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray alone, local training that Ray resumes, and the other way round equal a purely local run."""
    config = config_for(shards, **RECIPE)
    local = launch.train(config, tmp_path / "local", local=True)
    assert local.status()["state"] == "finished"
    assert "ray" not in local.status()["timings"]

    by_ray = Run(tmp_path / "by-ray")
    by_ray.create(config.model_dump(mode="json"))
    local_first = stop_within_an_epoch(config, tmp_path / "local-first", monkeypatch)
    result = subprocess.run(
        [sys.executable, "-c", ON_RAY, str(by_ray.path), str(local_first.path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert_equal_runs(local, by_ray)
    assert_equal_runs(local, local_first)

    ray_first = copy_first_epoch(by_ray, tmp_path / "ray-first")
    launch.resume(ray_first.path, local=True)
    assert_equal_runs(local, ray_first)


def start(run: Run) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LOCALLY, str(run.path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Polls until a condition holds; fails if the process ends before."""
    while not condition():
        if process.poll() is not None:
            raise AssertionError(process.communicate()[0])
        time.sleep(0.05)


@pytest.fixture
def endless(shards: Path, tmp_path: Path) -> Iterator[tuple[Run, subprocess.Popen[str]]]:
    """A local run in a process of its own that has finished its first epoch of very many."""
    run = Run(tmp_path / "endless")
    config = config_for(shards, epochs=10**6, model="linear", data={"image_size": [12, 12]})
    run.create(config.model_dump(mode="json"))
    process = start(run)
    try:
        wait_until(run.metrics, process)
        yield run, process
    finally:
        process.kill()
        process.wait()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [
        (signal.SIGTERM, 143, "stopped by SIGTERM; --resume continues from the last checkpoint"),
        (signal.SIGINT, 130, "stopped by hand; --resume continues from the last checkpoint"),
    ],
)
def test_a_local_run_ends_on_a_signal_like_one_on_ray(
    endless: tuple[Run, subprocess.Popen[str]], number: signal.Signals, code: int, reason: str
) -> None:
    run, process = endless
    with pytest.raises(ConfigError, match="nobody is training"):
        launch.resume(run.path, local=True)  # the process holds the lock
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == code, output
    assert f"continue with: glassbox train --resume --local --out {run.path}" in output
    assert output.splitlines()[-1] == "ray imported: False"
    assert (run.status()["state"], run.status()["reason"]) == ("interrupted", reason)
    position = max(path.name for path in run.checkpoints.glob("epoch-*"))
    assert int(position.split("-")[1]) >= len(run.metrics()) - 1


def test_workers_need_ray(shards: Path, tmp_path: Path) -> None:
    config = config_for(shards, **RECIPE)
    for begin in (launch.train, lambda config, *rest, **more: launch.resume(*rest, **more)):
        with pytest.raises(ConfigError, match="either --local, or options of workers"):
            begin(config, tmp_path / "run", WorkerSpec(2, 2), local=True)
    assert not (tmp_path / "run").exists()
