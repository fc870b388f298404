"""Telemetry of a run: gauges, events, a profile, logged rows, and MLflow where it is installed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from training_samples import config_for, create_run, noise_shards

from pipelines.errors import ConfigError
from service.config import RunConfig
from service.runs import Run
from service.training import loop, meter
from service.training.events import TRACKING_URI, find_location, open_epoch_log
from service.training.strategy import SINGLE_WORKER
from service.training.telemetry import GAUGES, ROWS_LOG, RowLog, align_to_profile, profile_once

CONFIG = RunConfig(preset="test", shards="/shards", model="linear")
METRICS = {
    "epoch": 1,
    "loss": 0.5,
    "accuracy": 0.75,
    "learning_rate": 0.01,
    "images_per_second": 10.0,
    "input_wait": 0.0,
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.create({})
    return run


def test_every_gauge_receives_its_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of 27 images, in batches of 8 and calls of two, in a worker that was restarted twice."""
    received: list[dict[str, float]] = []
    monkeypatch.setattr(loop, "create_gauges", lambda config, run: (received.append,))
    monkeypatch.setattr(meter, "PUBLISH_SECONDS", 0.0)
    config = config_for(noise_shards(tmp_path / "shards"), epochs=2, steps_per_call=2)
    run = create_run(tmp_path / "trained", config)
    training = loop.Loop(config, run, replace(SINGLE_WORKER, attempt=2))
    training.run_epochs()

    local_gauges = {name for name in GAUGES if not name.startswith(("store_", "val_"))}
    assert all(progress.keys() >= local_gauges for progress in received)
    assert not any(name.startswith("store_") for progress in received for name in progress)
    assert [progress["epoch"] for progress in received] == [1, 1, 2, 2]
    metrics = run.metrics()[0]
    for name in ("val_loss", "val_accuracy"):  # of the first epoch, while the second one is trained
        assert [progress.get(name) for progress in received] == [None, None, metrics[name], metrics[name]]
    assert [progress["skipped_updates"] for progress in received] == [0] * 4
    assert [progress["restarts"] for progress in received] == [2] * 4
    first, second = run.metrics()
    assert [received[1]["loss"], received[3]["loss"]] == pytest.approx([first["loss"], second["loss"]])
    images = [progress["images_per_second"] * progress["seconds"] for progress in received]
    assert images == pytest.approx([16, 27] * 2)

    seconds = training.timer.seconds
    wait_seconds = seconds["waiting for input"]
    in_calls = 2 * sum(progress["step_seconds"] for progress in received)
    assert in_calls == pytest.approx(seconds["first call"] + seconds["training"] + wait_seconds)
    waits = [progress["input_wait"] * progress["seconds"] for progress in received[1::2]]
    assert sum(waits) == pytest.approx(wait_seconds)

    ages = [progress["checkpoint_age_seconds"] for progress in received]
    assert ages[0] >= received[0]["step_seconds"]  # counted from the start
    assert ages[0] < ages[1] > ages[2] < ages[3], "a checkpoint after the first epoch"


def read_events(run: Run, split: str) -> dict[tuple[str, int], float]:
    """Values of all scalars of a split, by tag and step."""
    from tensorflow.compat.v1.train import summary_iterator

    values = {}
    for file in (run.events / split).iterdir():
        for event in summary_iterator(str(file)):
            for value in event.summary.value:
                values[value.tag, event.step] = value.simple_value
    return values


def test_events_hold_the_metrics_of_each_split(run: Run) -> None:
    with open_epoch_log(CONFIG, run, has_validation=True) as log:
        log(METRICS)  # not evaluated
        log(METRICS | {"epoch": 2, "val_loss": 0.4, "val_accuracy": 0.5, "val_auc": 0.625})
    train = read_events(run, "train")
    assert train["loss", 1] == train["loss", 2] == 0.5
    assert read_events(run, "validation") == {
        ("loss", 2): pytest.approx(0.4),
        ("accuracy", 2): 0.5,
        ("auc", 2): 0.625,
    }


def test_one_profile_is_taken_after_the_warmup(run: Run) -> None:
    for update, is_enabled, profiles in (
        (0, True, 0),
        (9, True, 0),
        (10, False, 0),
        (10, True, 1),
        (20, True, 1),
    ):
        with profile_once(run, is_enabled, update):
            tf.reduce_sum(tf.ones([8, 8])).numpy()
        files = list(run.profile.glob("plugins/profile/*/*.xplane.pb"))
        assert len(files) == profiles
    assert files[0].stat().st_size > 0


@pytest.mark.parametrize("updates_per_call", [1, 4, 64])
def test_the_profile_is_of_updates_10_to_19(updates_per_call: int) -> None:
    calls = []
    update = 0
    while update < 24:
        updates = align_to_profile(update, updates_per_call)
        calls.append((update, updates))
        update += updates
    assert (10, 10) in calls
    assert (20, updates_per_call) in calls


def test_rows_are_logged_if_the_environment_asks_for_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ROWS_LOG, raising=False)
    assert RowLog.from_environment(run, 1) is None
    monkeypatch.setenv(ROWS_LOG, "1")
    log = RowLog.from_environment(run, 1)
    assert log is not None
    log.write(2, 7, [np.array([5, 3]), np.array([1, -1])])
    log.write(2, 9, [np.array([2, 0])])
    assert (run.path / "rows-1.log").read_text() == "2 7 5 3\n2 8 1 -1\n2 9 2 0\n"


def test_mlflow_without_its_package_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACKING_URI, "https://mlflow.example")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    message = r"MLFLOW_TRACKING_URI=https://mlflow\.example\. Fix: .*pip install -e '\.\[mlflow\]'"
    with pytest.raises(ConfigError, match=message), open_epoch_log(CONFIG, run, has_validation=False):
        pass


def test_the_location_of_a_run_is_its_address_on_a_store(run: Run) -> None:
    assert find_location(run) == str(run.path)
    run.update_status(mirror={"uri": "s3://bucket/runs/first", "state": "mirrored"})
    assert find_location(run) == "s3://bucket/runs/first"


def test_mlflow_has_a_single_run_for_one_that_was_resumed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a store that needs no server
    monkeypatch.setenv(TRACKING_URI, f"file:{tmp_path}/mlruns")
    run.update_status(mirror={"uri": "s3://bucket/runs/first", "state": "mirrored"})
    for epoch in (1, 2):
        with open_epoch_log(CONFIG, run, has_validation=False) as log:
            log(METRICS | {"epoch": epoch, "loss": 1 / epoch})
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("glassbox")
    (logged,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(logged.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5)]
    assert logged.data.params["optimizer.name"] == "adam"
    assert logged.info.status == "FINISHED"
    assert logged.data.tags["glassbox_run"] == "s3://bucket/runs/first"
