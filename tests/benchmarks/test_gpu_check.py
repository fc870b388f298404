"""That the GPU check runs without a GPU, calculates rightly, and that nothing stops the rest of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_check
import gpu_results
import photos
import psutil
import pytest
from gpu_lab import Lab
from gpu_part import Checks, rows_of
from gpu_results import Row
from gpu_work import operations

WORDS = "what"  # file that says what the checks below do


def checks(lab: Lab) -> Checks:
    """A part for a process of its own: one check that works, and one that does what a file says."""
    yield "fine", lambda: [Row("x", "fine", gpu=1.0, passed=True)]
    yield "other", lambda: other(Path(lab.scratch, WORDS).read_text())


def other(what: str) -> list[Row]:
    if what == "break":
        raise ValueError("out of order\nand more")
    if what == "hang":
        time.sleep(60)
    if what == "die":
        raise SystemExit(9)
    return [Row("x", "other", cpu=2.0)]


def rows_in_a_process(folder: Path, what: str) -> Iterator[dict[str, Any]]:
    (folder / WORDS).write_text(what)
    return gpu_check._lines(
        "test_gpu_check", {"scratch": str(folder), "ends": time.time() + 60}, folder / "log", 60
    )


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("what", "passed", "note"),
    [
        ("work", None, ""),
        ("break", False, "failed: ValueError: out of order"),
        ("die", False, "failed: the process ended with status 9"),
        ("hang", False, "failed: not done after 60 s"),
    ],
)
def test_whatever_becomes_of_a_check_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, passed: bool, note: str
) -> None:
    rows, clock, others = rows_in_a_process(tmp_path, what), time.monotonic, psutil.Process().children()
    fine = next(rows)
    assert fine == {
        "part": "x",
        "name": "fine",
        "unit": "",
        "cpu": None,
        "gpu": 1.0,
        "goal": "",
        "passed": True,
        "note": "",
    }
    if what == "hang":
        (child,) = set(psutil.Process().children()) - set(others)
        monkeypatch.setattr(time, "monotonic", lambda: clock() + 60)
    (last,) = rows
    assert (last["passed"], last["note"]) == (passed, note)
    assert what != "hang" or not child.is_running()


@pytest.mark.e2e
def test_a_failure_is_in_the_table_and_in_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "REAL", tmp_path / "not there")
    monkeypatch.setattr(gpu_check, "PARTS", {"test_gpu_check": ("this file", 60)})
    code, found = run(tmp_path, "--images", "4")
    assert code == 1
    assert [row["passed"] for row in found["rows"]] == [True, False]
    assert found["rows"][1]["note"].startswith("failed: FileNotFoundError")  # nobody said what to do
    assert "FAILED: test_gpu_check other" in (tmp_path / "gpu-check.txt").read_text()
    assert "FileNotFoundError" in (tmp_path / "gpu-check.log").read_text()


def test_no_check_begins_when_the_time_is_over(tmp_path: Path) -> None:
    (tmp_path / WORDS).write_text("work")
    found = list(rows_of("x", checks(Lab(str(tmp_path), time.time())), Lab(str(tmp_path), time.time())))
    assert [row.note for row in found] == ["not measured: no time left"] * 2
    assert gpu_results.failures(found) == []


def test_time_that_a_part_leaves_goes_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    monkeypatch.setattr(gpu_check, "PARTS", {"p": ("first", 30), "q": ("second", 60)})
    monkeypatch.setattr(
        gpu_check, "_lines", lambda part, settings, log, seconds: given.append(seconds) or iter(())
    )
    assert list(gpu_check._rows(["p", "q"], {"ends": time.time() + 90}, tmp_path / "log")) == []
    assert given == [pytest.approx(30, abs=1), pytest.approx(90, abs=1)]


def test_the_table_shows_what_is_not_measured_and_what_failed() -> None:
    rows = [
        Row("a", "rate", "images/s", cpu=1234.5, gpu=98765.4, goal="fast", passed=True),
        Row("a", "ratio", cpu=0.98765, goal=">= 1", passed=False, note="slow"),
        Row("b", "rate", "images/s"),
    ]
    _, first, second, third = gpu_results.text(rows).splitlines()
    assert first.split() == ["a", "rate", "images/s", "1,234", "98,765", "fast", "pass"]
    assert second.split() == ["a", "ratio", "0.988", "not", "measured", ">=", "1", "FAIL", "slow"]
    assert third.split() == ["b", "rate", "images/s", "not", "measured", "not", "measured"]
    assert (
        gpu_results.markdown(rows).splitlines()[3]
        == "| a | ratio |  | 0.988 | not measured | >= 1 | FAIL | slow |"
    )
    whole = gpu_results.report({"GPU": "none"}, rows, 7.0)
    assert "FAILED: a ratio: slow" in whole
    assert whole.endswith("1 of 2 goals reached, 2 of 3 figures not measured on a GPU, 7 s")


def test_operations_are_those_of_the_layers() -> None:
    import keras  # not in the processes that import this file

    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(5, 3)(image)  # [6, 6, 5]: 27 products a value
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", groups=1)(x)  # [3, 3, 4]: 45 products
    inner = keras.Sequential(
        [keras.Input((3, 3, 4)), keras.layers.DepthwiseConv2D(2), keras.layers.Flatten()]
    )  # [2, 2, 4]: 4 products
    net = keras.Model(image, keras.layers.Dense(7)(inner(x)))  # 16 products
    each = [2 * 6 * 6 * 5 * 27, 2 * 3 * 3 * 4 * 45, 2 * 2 * 2 * 4 * 4, 2 * 7 * 16]
    assert operations(net) == (sum(each), 3 * sum(each) - each[0])


def test_operations_of_a_known_network() -> None:
    import keras  # not in the processes that import this file

    forward, _ = operations(keras.applications.VGG16(weights=None))
    assert forward == pytest.approx(
        2 * 15.47e9, rel=1e-3
    )  # 15.47 G multiply-adds at 224 x 224 (Simonyan and Zisserman, 2014)


def run(folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    code = gpu_check.main(["--smallest", "--out", str(folder), *options])
    return code, json.loads((folder / "gpu-check.json").read_text())


def check(found: dict[str, Any], goals: dict[str, int]) -> None:
    """All rows passed or have nothing to pass; so many of every part were judged; a GPU was not there and every row says so."""
    rows = found["rows"]
    assert [row for row in rows if row["passed"] is False] == []
    assert {
        part: sum(row["part"] == part and row["passed"] is True for row in rows) for part in goals
    } == goals
    assert all(row["gpu"] is None for row in rows)
    assert all(row["cpu"] is not None or "not measured" in row["note"] for row in rows)
    assert "none that TensorFlow sees" in found["environment"]["GPU"]


@pytest.mark.e2e
def test_the_smallest_form_runs_on_generated_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "REAL", tmp_path / "not there")
    monkeypatch.setattr(photos, "SIZE", 64)
    code, found = run(tmp_path / "out", "--part", "a", "--part", "b", "--part", "f")
    check(found, {"a": 3, "b": 1, "f": 2})
    assert code == 0
    assert "generated" in found["environment"]["photos"]
    assert "DLPack" in (tmp_path / "out" / "gpu-check.md").read_text()


@pytest.mark.slow
@pytest.mark.e2e
def test_the_smallest_form_trains(tmp_path: Path) -> None:
    code, found = run(tmp_path / "out", "--part", "c", "--part", "d", "--part", "e")
    check(found, {"c": 6, "d": 0, "e": 2})
    assert code == 0
