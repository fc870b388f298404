"""The run directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from service.runs import Run


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
    (tmp_path / "mine.txt").write_text("dear")
    for path in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(ConfigError, match="does not exist yet"):
            Run(path).create({})
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    Run(tmp_path / "empty").path.mkdir()
    Run(tmp_path / "empty").create({})


def test_damaged_files_are_no_tracebacks(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create({})
    run.status_path.write_text("")
    assert run.status() == {}
    for text in ("", "a: [", "3"):
        run.config_path.write_text(text)
        with pytest.raises(ConfigError, match="damaged"):
            run.config()


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a run directory"):
        Run(tmp_path).config()
