"""The driver: how a run ends, in the status, in the exception and on the disk."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

from pipelines.errors import ConfigError, DataError, TrainingError
from pipelines.shards.manifest import VERSION, Manifest
from service.config import RunConfig
from service.runs import Run
from service.training import launch


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run's configuration, on a cluster that is not there."""
    monkeypatch.setattr(launch, "connected", contextlib.nullcontext)
    (tmp_path / "shards").mkdir()
    texts = {"format": "arrow", "encoding": "png", "source": "folder:x", "fingerprint": "0"}
    Manifest(version=VERSION, store_size=None, classes=("a", "b"), splits={}, rejected=0, **texts).save(tmp_path / "shards")
    return RunConfig(preset="test", shards=str(tmp_path / "shards"), model="linear", epochs=1)


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(config: RunConfig, run: Run) -> None:
        raise error

    monkeypatch.setattr(launch, "_fit", fail)


@pytest.mark.parametrize(
    ("error", "raised", "state"),
    [
        (TrainingError("a", "b", "c"), TrainingError, "failed"),
        (ZeroDivisionError("x"), ZeroDivisionError, "failed"),
        (SystemExit(1), KeyboardInterrupt, "interrupted"),
    ],
)
def test_a_run_says_how_it_ended(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, raised: type[BaseException], state: str
) -> None:
    failing(monkeypatch, error)
    with pytest.raises(raised):
        launch.train(config, tmp_path / "run")
    assert Run(tmp_path / "run").status()["state"] == state


@pytest.mark.parametrize("error", [DataError("a", "b", "c"), ConfigError("a", "b", "c")])
def test_a_users_mistake_leaves_no_run(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    failing(monkeypatch, error)
    with pytest.raises(type(error)):
        launch.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_only_one_process_trains_a_run(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, SystemExit(1))
    with pytest.raises(KeyboardInterrupt):
        launch.train(config, tmp_path / "run")
    run = Run(tmp_path / "run")
    before = run.status()
    with run.locked(), pytest.raises(ConfigError, match="nobody is training"):
        launch.resume(run.path)
    assert run.status() == before


def test_a_finished_run_is_left_alone_until_it_is_given_more_epochs(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []

    def fit(config: RunConfig, run: Run) -> None:
        fitted.append(config.epochs)
        run.write_metrics([{"epoch": epoch + 1, "accuracy": 1.0} for epoch in range(config.epochs)])

    monkeypatch.setattr(launch, "_fit", fit)
    monkeypatch.setattr(launch, "shown", lambda run, epochs: contextlib.nullcontext())
    run = launch.train(config, tmp_path / "run")
    launch.resume(run.path)
    assert fitted == [1]
    run.config_path.write_text(run.config_path.read_text().replace("epochs: 1", "epochs: 2"))
    launch.resume(run.path)
    assert fitted == [1, 2]


def test_the_cause_is_the_workers_own_error() -> None:
    mine = DataError("a", "b", "c")
    assert launch._cause(WorkerGroupError("m", {0: UserExceptionWithTraceback(mine, "trace")})) is mine
    bug = ZeroDivisionError("x")
    assert launch._cause(WorkerGroupError("m", {1: UserExceptionWithTraceback(bug, "trace")})) is bug


def test_a_lost_worker_and_a_full_disk_are_failures_of_the_training() -> None:
    lost = launch._cause(WorkerGroupError("m", {0: WorkerHealthCheckFailedError("gone", OSError())}))
    disk = OSError(28, "No space left on device", "/run/x")
    full = launch._cause(WorkerGroupError("m", {0: UserExceptionWithTraceback(disk, "trace")}))
    assert (type(lost), type(full)) == (TrainingError, TrainingError)
    assert "/run/x: No space left on device" in str(full)


def test_one_worker_takes_the_node_with_most_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 64.0}},
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 8.0}},
    ]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    assert launch._scaling().resources_per_worker == {"CPU": 8, "GPU": 2}
