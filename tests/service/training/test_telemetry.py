"""What leaves a run while it trains: gauges, events, a profile, rows; MLflow where it is installed."""

from __future__ import annotations

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
from service.training.events import TRACKING_URI, open_epoch_log
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
    made = Run(tmp_path / "run")
    made.create({})
    return made


def test_every_gauge_is_told_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of 27 images, 8 a step and two steps a call, in a worker that has been started again twice."""
    seen: list[dict[str, float]] = []
    monkeypatch.setattr(loop, "create_gauges", lambda config, run: (seen.append,))
    monkeypatch.setattr(meter, "PUBLISH_SECONDS", 0.0)
    config = config_for(noise_shards(tmp_path / "shards"), epochs=2, steps_per_call=2)
    trained = loop.Loop(config, create_run(tmp_path / "trained", config), replace(SINGLE_WORKER, attempt=2))
    trained.run_epochs()
    assert all(told.keys() >= GAUGES.keys() for told in seen)
    assert [told["epoch"] for told in seen] == [1, 1, 2, 2]
    assert [told["restarts"] for told in seen] == [2] * 4
    first, second = trained.run.metrics()
    assert [seen[1]["loss"], seen[3]["loss"]] == pytest.approx([first["loss"], second["loss"]])
    assert [told["images_per_second"] * told["seconds"] for told in seen] == pytest.approx([16, 27] * 2)
    clock = trained.timer.seconds
    waited = clock["waiting for input"]
    assert 2 * sum(told["step_seconds"] for told in seen) == pytest.approx(
        clock["first call"] + clock["training"] + waited
    )
    assert sum(told["input_wait"] * told["seconds"] for told in seen[1::2]) == pytest.approx(waited)
    ages = [told["checkpoint_age_seconds"] for told in seen]
    assert ages[0] >= seen[0]["step_seconds"]  # counted from the start
    assert ages[0] < ages[1] > ages[2] < ages[3], "a checkpoint after the first epoch"


def events(run: Run, split: str) -> dict[tuple[str, int], float]:
    from tensorflow.compat.v1.train import summary_iterator

    files = (run.events / split).iterdir()
    return {
        (v.tag, e.step): v.simple_value
        for file in files
        for e in summary_iterator(str(file))
        for v in e.summary.value
    }


def test_events_hold_what_was_measured_and_nothing_else(run: Run) -> None:
    with open_epoch_log(CONFIG, run, validation=True) as log:
        log(METRICS)  # not evaluated
        log(METRICS | {"epoch": 2, "val_loss": 0.4, "val_accuracy": 0.5, "val_auc": 0.625})
    train, validation = events(run, "train"), events(run, "validation")
    assert train["loss", 1] == train["loss", 2] == 0.5
    assert validation == {("loss", 2): pytest.approx(0.4), ("accuracy", 2): 0.5, ("auc", 2): 0.625}


def test_one_profile_of_a_run_that_has_warmed_up(run: Run) -> None:
    for update, wanted in ((0, True), (9, True), (10, False), (10, True), (20, True)):
        with profile_once(run, wanted, update):
            tf.reduce_sum(tf.ones([8, 8])).numpy()
        profiles = list((run.events / "profile").glob("plugins/profile/*/*.xplane.pb"))
        assert len(profiles) == int((update, wanted) in ((10, True), (20, True)))
    assert profiles[0].stat().st_size > 0


@pytest.mark.parametrize("pace", [1, 4, 64])
def test_a_profile_is_of_updates_10_to_19(pace: int) -> None:
    calls, update = [], 0
    while update < 24:
        calls.append((update, align_to_profile(update, pace)))
        update += calls[-1][1]
    assert (10, 10) in calls
    assert (20, pace) in calls


def test_rows_are_logged_where_it_is_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ROWS_LOG, raising=False)
    assert RowLog.from_environment(run, 1) is None
    monkeypatch.setenv(ROWS_LOG, "1")
    log = RowLog.from_environment(run, 1)
    assert log is not None
    log.write(2, 7, [np.array([5, 3]), np.array([1, -1])])
    assert (run.path / "rows-1.log").read_text() == "2 7 5 3\n2 8 1 -1\n"


def test_a_tracker_without_its_library_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACKING_URI, "https://mlflow.example")
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with (
        pytest.raises(
            ConfigError, match=r"MLFLOW_TRACKING_URI=https://mlflow.example. Fix: install glassbox\[mlflow\]"
        ),
        open_epoch_log(CONFIG, run, validation=False),
    ):
        pass


def test_mlflow_has_one_run_for_a_run_that_was_continued(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a store that needs no server
    monkeypatch.setenv(TRACKING_URI, f"file:{tmp_path}/mlruns")
    for epoch in (1, 2):
        with open_epoch_log(CONFIG, run, validation=False) as log:
            log(METRICS | {"epoch": epoch, "loss": 1 / epoch})
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("glassbox")
    (found,) = client.search_runs([experiment.experiment_id])
    assert [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "loss")] == [
        (1, 1.0),
        (2, 0.5),
    ]
    assert found.data.params["optimizer.name"] == "adam"
    assert found.info.status == "FINISHED"
