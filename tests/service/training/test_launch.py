"""The driver: how a run ends, in its status, in the exception and on disk."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ConfigError, DataError, Interrupted, TrainingError
from pipelines.shards.manifest import VERSION, Manifest
from service.cli import main
from service.config import RunConfig
from service.runs import Run, StoppedError
from service.training import launch
from service.training.group import WorkerSpec


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The configuration of a run, with no cluster to connect to."""
    monkeypatch.setattr(launch, "ray_session", contextlib.nullcontext)
    (tmp_path / "shards").mkdir()
    texts = {"format": "arrow", "encoding": "png", "source": "folder:x", "fingerprint": "0"}
    Manifest(version=VERSION, store_size=None, classes=("a", "b"), splits={}, rejected=0, **texts).save(
        tmp_path / "shards"
    )
    return RunConfig(preset="test", shards=str(tmp_path / "shards"), model="linear", epochs=1)


def replace_training(monkeypatch: pytest.MonkeyPatch, work: Callable[[RunConfig, Run], None]) -> None:
    """Lets a function take the place of the training on the cluster."""
    monkeypatch.setattr(launch, "train_on_cluster", lambda config, output, workers: work(config, output.run))


def fail_training(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(config: RunConfig, run: Run) -> None:
        raise error

    replace_training(monkeypatch, fail)


@pytest.mark.parametrize(
    ("error", "raised", "state", "reason"),
    [
        (TrainingError("a", "b", "c"), TrainingError, "failed", "Expected a. Received: b. Fix: c."),
        (ZeroDivisionError("x"), ZeroDivisionError, "failed", "x"),
        (
            KeyboardInterrupt(),
            Interrupted,
            "interrupted",
            "stopped by hand; --resume continues from the last checkpoint",
        ),
        (
            StoppedError("SIGTERM"),
            Interrupted,
            "interrupted",
            "stopped by SIGTERM; --resume continues from the last checkpoint",
        ),
        (OSError(errno.ENOSPC, "full", "/run/x"), TrainingError, "failed", "[Errno 28] full: '/run/x'"),
    ],
)
def test_the_status_records_how_a_run_ended(
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[BaseException],
    state: str,
    reason: str,
) -> None:
    fail_training(monkeypatch, error)
    with pytest.raises(raised) as ended:
        launch.train(config, tmp_path / "run")
    status = Run(tmp_path / "run").status()
    assert (status["state"], status["reason"]) == (state, reason)
    code = getattr(ended.value, "exit_code", None)
    assert code == {StoppedError: 143, KeyboardInterrupt: 130, ZeroDivisionError: None}.get(type(error), 4)


@pytest.mark.parametrize(
    ("changes", "trains"),
    [
        ({}, False),
        ({"epochs": 20}, False),  # the present patience has run out nevertheless
        ({"early_stopping": None}, True),
        ({"early_stopping": {"metric": "loss", "patience": 3}}, True),
        ({"early_stopping": None, "epochs": 4}, False),
    ],
)
def test_resuming_a_finished_run_asks_its_present_configuration(
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    trains: bool,
) -> None:
    """The losses of four epochs of nine, after which a patience of two has run out."""
    run = Run(tmp_path / "run")
    stopping = {"metric": "loss", "patience": 2}
    run.create(config.model_dump(mode="json") | {"epochs": 9, "early_stopping": stopping} | changes)
    run.write_metrics([{"epoch": n, "loss": loss} for n, loss in enumerate((3.0, 2.0, 2.5, 2.0), 1)])
    run.update_status(state="finished")
    trained: list[Run] = []
    replace_training(monkeypatch, lambda config, run: trained.append(run))
    launch.resume(run.path)
    assert bool(trained) == trains
    assert ("nothing is left to train" in capsys.readouterr().out) != trains


def test_a_run_with_early_stopping_that_trained_all_epochs_trains_more_of_them(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    stopping = {"metric": "loss", "patience": 2}
    run.create(config.model_dump(mode="json") | {"epochs": 5, "early_stopping": stopping})
    run.write_metrics([{"epoch": n, "loss": 1 / n} for n in range(1, 4)])
    run.update_status(state="finished")
    trained: list[Run] = []
    replace_training(monkeypatch, lambda config, run: trained.append(run))
    launch.resume(run.path)
    assert len(trained) == 1


def test_the_command_to_continue_can_be_pasted_into_a_shell(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_training(monkeypatch, KeyboardInterrupt())
    out = tmp_path / "my run; rm $HOME"
    with pytest.raises(Interrupted) as ended:
        launch.train(config, out)
    command = str(ended.value).partition("continue with: ")[2]
    assert shlex.split(command) == ["glassbox", "train", "--resume", "--out", str(out)]


@pytest.mark.parametrize("error", [DataError("a", "b", "c"), ConfigError("a", "b", "c")])
@pytest.mark.parametrize("checkpoint", [None, "epoch-0000-step-0000007"])
def test_a_mistake_in_the_configuration_leaves_no_run_unless_something_is_saved(
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    checkpoint: str | None,
) -> None:
    def work(config: RunConfig, run: Run) -> None:
        if checkpoint:
            (run.checkpoints / checkpoint).mkdir()
        raise error

    replace_training(monkeypatch, work)
    with pytest.raises(type(error)):
        launch.train(config, tmp_path / "run")
    assert (tmp_path / "run").exists() == bool(checkpoint)


@pytest.mark.parametrize(
    ("sizes", "setting"), [((31, 64), "data.image_size=31x31"), ((64, 31), "augment.size=31x31")]
)
def test_images_too_small_for_the_model_start_nothing(
    config: RunConfig, tmp_path: Path, sizes: tuple[int, int], setting: str
) -> None:
    whole, small = ({key: [side, side]} for key, side in zip(("image_size", "size"), sizes, strict=True))
    settings = config.model_dump() | {"model": "vgg16", "data": whole, "augment": small}
    with pytest.raises(ConfigError, match=f"32x32 or larger for vgg16. Received: {setting}"):
        launch.train(RunConfig.model_validate(settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sigterm_requests_a_stop(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[str | None] = []
    before = signal.getsignal(signal.SIGTERM)

    def work(config: RunConfig, run: Run) -> None:
        requests.append(run.stop_requested())
        os.kill(os.getpid(), signal.SIGTERM)
        requests.append(run.stop_requested())

    replace_training(monkeypatch, work)
    run = launch.train(config, tmp_path / "run")
    assert requests == [None, "SIGTERM"]
    assert signal.getsignal(signal.SIGTERM) is before
    launch.resume(run.path)
    assert requests[2] is None, "the old request is still there"


def test_only_one_process_trains_a_run(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_training(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        launch.train(config, tmp_path / "run")
    run = Run(tmp_path / "run")
    before = run.status()
    with run.hold_lock(), pytest.raises(ConfigError, match="nobody is training"):
        launch.resume(run.path)
    assert run.status() == before


def test_a_finished_run_is_left_as_it_is_until_it_gets_more_epochs(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs_trained: list[int] = []

    def fit(config: RunConfig, run: Run) -> None:
        epochs_trained.append(config.epochs)
        run.write_metrics([{"epoch": epoch + 1, "accuracy": 1.0} for epoch in range(config.epochs)])

    replace_training(monkeypatch, fit)
    monkeypatch.setattr(launch, "show_progress", lambda *_: contextlib.nullcontext())
    run = launch.train(config, tmp_path / "run")
    launch.resume(run.path)
    assert epochs_trained == [1]
    run.config_path.write_text(run.config_path.read_text().replace("epochs: 1", "epochs: 2"))
    launch.resume(run.path)
    assert epochs_trained == [1, 2]


def test_a_retried_job_resumes_its_run_and_refuses_that_of_another_training(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    fail_training(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        launch.train_or_resume(config, out)
    out.joinpath("mark").touch()
    replace_training(monkeypatch, lambda config, run: None)
    monkeypatch.setattr(launch, "show_progress", lambda *_: contextlib.nullcontext())
    for changes in ({"preset": "other"}, {"shards": str(tmp_path)}):
        with pytest.raises(ConfigError, match=r"that was started at .*preset=test .*choose another --out"):
            launch.train_or_resume(config.model_copy(update=changes), out)
    assert Run(out).status()["state"] == "interrupted"
    launch.train_or_resume(config.model_copy(update={"epochs": 9}), out)
    assert Run(out).status()["state"] == "finished"
    assert out.joinpath("mark").exists()
    assert Run(out).config()["epochs"] == 1, "a run keeps its configuration"


def test_the_environment_has_the_version_of_tensorflow_without_an_import() -> None:
    script = (
        "import sys; from service.training.launch import describe_environment; "
        "print(describe_environment()['tensorflow'], 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"2\.\d+\.\d+ False\n", done.stdout)


def test_resuming_with_more_epochs_is_refused_with_the_way_to_train_longer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "--resume", "--out", "run", "epochs=3"]) == 2
    assert "to train longer, raise epochs in config.yaml" in capsys.readouterr().err


def test_a_run_is_resumed_with_as_many_workers_as_before(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs: list[WorkerSpec] = []

    def stop(config: RunConfig, run: Run, workers: WorkerSpec) -> None:
        specs.append(workers)
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "train_on_cluster", stop)
    for begin in (
        lambda: launch.train(config, tmp_path / "run", WorkerSpec(2, 3, cpus=4)),
        lambda: launch.resume(tmp_path / "run"),
        lambda: launch.resume(tmp_path / "run", WorkerSpec(1, 1)),
        lambda: launch.resume(tmp_path / "run"),
    ):
        with pytest.raises(KeyboardInterrupt):
            begin()
    assert specs == [WorkerSpec(2, 3, cpus=4)] * 2 + [WorkerSpec(1, 1)] * 2


def test_workers_that_do_not_divide_the_lanes_are_refused_before_anything_starts(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[Run] = []
    replace_training(monkeypatch, lambda config, run: starts.append(run))
    lanes = config.model_copy(update={"data": config.data.model_copy(update={"lanes": 4})})
    with pytest.raises(ConfigError, match=r"workers=3 lanes=4.*use 2 or 4 workers"):
        launch.train(lanes, tmp_path / "run", WorkerSpec(3, 3))
    assert not (tmp_path / "run").exists()
    run = launch.train(lanes, tmp_path / "run", WorkerSpec(1, 3))
    run.update_status(state="interrupted")
    with pytest.raises(ConfigError, match="workers=3 lanes=4"):
        launch.resume(run.path, WorkerSpec(3, 3))
    launch.resume(run.path, WorkerSpec(4, 4))
    assert len(starts) == 2
