"""The run directory."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import ConfigError, DataError
from service.array_file import save_arrays
from service.checkpoint_record import format_record
from service.runs import Run, find_runs, score

HUGE_BYTES = 1 << 36  # 64 GiB without a block on disk: reading it would take a minute


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


def test_a_process_that_is_killed_while_it_creates_a_run_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    child = os.fork()
    if not child:
        Run._copy_code = lambda *arguments: os._exit(9)
        run.create({})
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    run.create({"model": "net"})
    assert run.config() == {"model": "net"}
    assert [found.path for found in find_runs(tmp_path)] == [run.path]


def test_damaged_files_are_clear_errors(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create({})
    for text in ("", "null", "[]", '{"timings": 3}', '{"notices": "none"}', '{"state": "fin'):
        run.status_path.write_text(text)
        assert run.status() == {}
        assert run.state() == ""
    for text in ("", "a: [", "3"):
        run.config_path.write_text(text)
        with pytest.raises(ConfigError, match="damaged"):
            run.config()


def test_a_changed_status_is_damaged_and_one_of_an_older_version_is_read(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.create({})
    run.update_status(state="finished", timings={"total": 31.5})
    run.status_path.write_text(run.status_path.read_text().replace("31.5", "91.5"))
    assert run.status() == {}
    run.status_path.write_text('{"state": "finished", "of another version": 3}')
    assert run.status() == {"state": "finished", "of another version": 3}


LINES = ['{"epoch": 1, "loss": 0.5}\n', '{"epoch": 2, "loss": 0.25}\n', '{"epoch": 3, "loss": 0.125}\n']
HISTORY = [json.loads(line) for line in LINES]


def save_record(run: Run, epochs: int) -> None:
    folder = run.checkpoints / f"epoch-{epochs:04d}"
    folder.mkdir()
    entries = {"epoch": epochs, "step": 0, "stage": 0, "data": "", "history": HISTORY[:epochs], "sums": []}
    record = format_record(entries | {"seconds": 0.0, "groups": {}, "sha256": ""})
    (folder / "checkpoint.json").write_text(record)


@pytest.mark.parametrize(
    ("lines", "recorded", "expected"),
    [
        (LINES, 0, 3),
        (LINES, 3, 3),
        (LINES[:2], 3, 2),  # between the checkpoint and its line
        ([*LINES[:2], LINES[2][:9]], 3, 3),  # cut short
        ([*LINES[:2], LINES[2][:-1]], 3, 3),
        ([*LINES[:2], "[]\n"], 3, 3),
        ([LINES[0][:5]], 3, 3),
        ([], 3, 3),
        (LINES, 2, 3),
    ],
)
def test_metrics_lost_at_the_end_are_those_of_the_checkpoint(
    tmp_path: Path, lines: list[str], recorded: int, expected: int
) -> None:
    run = Run(tmp_path / "run")
    run.create({})
    run.metrics_path.write_text("".join(lines))
    if recorded:
        save_record(run, recorded)
    assert run.metrics() == HISTORY[:expected]


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        ([LINES[0], "[]\n", LINES[2]], 2),
        ([LINES[0], LINES[2], LINES[2]], 2),
        ([LINES[0], LINES[1].replace("0.25", "0.75"), LINES[2]], 2),
        (['{"epoch": 1, "loss": "low"}\n', LINES[1]], 1),
        (['{"epoch": 1, "loss": NaN}\n', LINES[1]], 1),
        ([*LINES, LINES[2][:9]], 4),  # the checkpoint does not have it
    ],
)
def test_metrics_that_are_damaged_elsewhere_are_an_error_that_names_the_line(
    tmp_path: Path, lines: list[str], number: int
) -> None:
    run = Run(tmp_path / "run")
    run.create({})
    run.metrics_path.write_text("".join(lines))
    save_record(run, 2)
    with pytest.raises(DataError, match=rf"metrics\.jsonl, line={number} "):
        run.metrics()


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


@pytest.mark.parametrize("name", ["../other.py", "code/../../other.py", "/etc/other.py"])
def test_code_outside_of_the_run_is_refused(tmp_path: Path, name: str) -> None:
    run = Run(tmp_path / "run")
    run.create({"model": "mnist_cnn"})
    run.code.mkdir()
    (run.code / "manifest.json").write_text(json.dumps({"originals": {name: "nets.py"}}))
    with pytest.raises(ConfigError, match=r"code/manifest\.json \(damaged\)"):
        run.config()


def fill_run(folder: Path) -> Run:
    """Creates a run with every file that a report depends on."""
    run = Run(folder / "run")
    run.create({"model": "net"})
    save_arrays(run.model_path.with_suffix(".npz"), [np.zeros(3)])
    run.model_path.with_suffix(".npz").rename(run.model_path)  # a zip archive, as a model is
    for path in (run.metadata_path, run.metrics_path, run.layers_path):
        path.write_text("{}")
    (run.checkpoints / "epoch-0001").mkdir()
    (run.checkpoints / "epoch-0001" / "checkpoint.json").write_text("{}")
    return run


@pytest.mark.parametrize("name", ["config.yaml", "data.json", "metrics.jsonl", "layers.jsonl", "model.keras"])
def test_files_of_an_implausible_size_are_not_hashed(tmp_path: Path, name: str) -> None:
    run = fill_run(tmp_path)
    run.hash_contents()
    os.truncate(run.path / name, HUGE_BYTES)
    with pytest.raises(DataError, match=name):
        run.hash_contents()


def test_a_huge_record_of_a_checkpoint_counts_as_damaged(tmp_path: Path) -> None:
    run = fill_run(tmp_path)
    before = run.hash_contents()
    os.truncate(run.checkpoints / "epoch-0001" / "checkpoint.json", HUGE_BYTES)
    changed = {key for key, digest in run.hash_contents().items() if digest != before[key]}
    assert changed == {"checkpoints"}
