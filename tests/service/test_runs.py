"""The run directory."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from service.runs import Run, score


def test_round_trip(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert (run.metrics(), run.status()) == ([], {})
    run.create({"model": "mnist_cnn", "data": {"image_size": [28, 28]}})
    run.write_metrics([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
    run.update_status(state="training", reason=None)
    run.update_status(state="finished")
    again = Run(run.path)
    assert again.config() == {"model": "mnist_cnn", "data": {"image_size": [28, 28]}}
    assert again.metrics() == [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    assert again.status() == {"state": "finished", "reason": None}


def test_existing_output_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("important")
    for path in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(ConfigError, match="does not exist yet"):
            Run(path).create({})
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    Run(tmp_path / "empty").path.mkdir()
    Run(tmp_path / "empty").create({})


def test_damaged_files_are_clear_errors(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create({})
    run.status_path.write_text("")
    assert run.status() == {}
    for text in ("", "a: [", "3"):
        run.config_path.write_text(text)
        with pytest.raises(ConfigError, match="damaged"):
            run.config()


def test_a_stop_is_requested_with_a_reason_until_it_is_withdrawn(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert run.stop_requested() is None
    run.create({})
    assert run.stop_requested() is None
    run.request_stop("SIGTERM")
    assert Run(run.path).stop_requested() == "SIGTERM"
    for _ in range(2):
        run.withdraw_stop()
        assert run.stop_requested() is None


def test_notices_are_kept_in_order(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create({})
    run.update_status(state="training")
    run.notice("first")
    run.notice("second")
    assert run.status() == {"state": "training", "notices": ["first", "second"]}


def test_the_score_is_that_of_validation_where_there_is_one() -> None:
    trained = {"accuracy": 0.9}
    evaluated = {"accuracy": 0.2, "val_accuracy": 0.4}
    assert (score(evaluated), score(trained), score(trained, [trained])) == (0.4, 0.9, 0.9)
    assert score(trained, [trained, evaluated]) == -1.0


def test_metrics_that_are_not_numbers_replace_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create({})
    run.write_metrics([{"epoch": 1, "loss": 0.5}])
    with pytest.raises(ValueError, match="JSON"):
        run.write_metrics([{"epoch": 1, "loss": float("nan")}])
    assert run.metrics() == [{"epoch": 1, "loss": 0.5}]
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "config.yaml", "metrics.jsonl"]


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a run directory"):
        Run(tmp_path).config()


@pytest.mark.parametrize(("holder", "state"), [("some-host", "training"), ("", "interrupted")])
def test_the_copy_of_a_run_on_a_store_has_the_state_that_its_lease_tells(
    tmp_path: Path, holder: str, state: str
) -> None:
    run = Run(tmp_path)
    run.update_status(state="training", environment={"host": platform.node()})
    run.record_holder(holder)
    assert run.state() == state


@pytest.mark.parametrize(
    ("recorded", "host", "is_locked", "state"),
    [
        ("training", None, True, "training"),
        ("training", None, False, "interrupted"),
        ("starting", None, False, "interrupted"),
        ("training", "elsewhere", False, "training"),  # locks may not reach this machine
        ("failed", None, False, "failed"),
        ("finished", None, True, "finished"),
    ],
)
def test_a_killed_run_counts_as_interrupted(
    tmp_path: Path, recorded: str, host: str | None, is_locked: bool, state: str
) -> None:
    run = Run(tmp_path / "run")
    assert run.state() == ""
    run.create({})
    run.update_status(state=recorded, environment={"host": host or platform.node()})
    with run.hold_lock() if is_locked else contextlib.nullcontext():
        assert run.state() == state
