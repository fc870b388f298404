"""The GPU check runs without a GPU, computes its figures correctly, and no failure stops the rest of it."""

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
from gpu_check import Part
from gpu_context import CheckContext
from gpu_flops import count_operations
from gpu_part import Checks, run_checks
from gpu_results import Row

BEHAVIOUR_FILE = "behaviour"  # tells the check below what to do
STARTED_FILE = "started"  # exists once that check runs
THIS_FILE = Part("this file", 600, "Nothing.")
FINE = Row("x", "fine", gpu=1.0, passed=True)


def list_checks(context: CheckContext) -> Checks:
    """A part in a process of its own: the second of three checks does what the file says."""
    yield "fine", lambda: [FINE]
    yield "other", lambda: misbehave(Path(context.scratch))
    yield "last", lambda: [Row("x", "last", cpu=3.0)]


def misbehave(scratch: Path) -> list[Row]:
    (scratch / STARTED_FILE).touch()
    behaviour = (scratch / BEHAVIOUR_FILE).read_text()
    if behaviour == "raise":
        raise ValueError("out of order\nand more")
    if behaviour == "hang":
        time.sleep(600)
    if behaviour == "exit":
        raise SystemExit(9)
    return [Row("x", "other", cpu=2.0)]


def run_in_process(folder: Path, behaviour: str) -> Iterator[Row]:
    (folder / BEHAVIOUR_FILE).write_text(behaviour)
    settings = {"scratch": str(folder), "deadline": time.time() + 600}
    return gpu_check._run_part("test_gpu_check", settings, folder / "log", 600)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("behaviour", "passed", "note", "last_note"),
    [
        ("work", None, "", ""),
        ("raise", False, "failed: ValueError: out of order", ""),
        (
            "exit",
            False,
            "failed: the process ended with status 9",
            "not measured: the process of this part has failed",
        ),
        ("hang", None, "not measured: not done after 600 s", "not measured: no time left"),
    ],
)
def test_every_outcome_of_a_check_becomes_a_row(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: str,
    passed: bool | None,
    note: str,
    last_note: str,
) -> None:
    clock = time.monotonic
    monkeypatch.setattr(gpu_check, "PARTS", {"test_gpu_check": THIS_FILE})
    children_before = set(psutil.Process().children())
    rows = run_in_process(tmp_path, behaviour)
    assert next(rows) == FINE
    (child,) = set(psutil.Process().children()) - children_before
    if behaviour == "hang":
        while not (tmp_path / STARTED_FILE).exists():
            time.sleep(0.01)
        monkeypatch.setattr(time, "monotonic", lambda: clock() + 600)
    other, last = rows
    assert (other.name, other.passed, other.note) == ("other", passed, note)
    assert (last.name, last.passed, last.note) == ("last", None, last_note)
    assert not child.is_running()


@pytest.mark.e2e
def test_failure_is_in_the_table_and_in_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "REAL", tmp_path / "absent")
    monkeypatch.setattr(gpu_check, "PARTS", {"test_gpu_check": THIS_FILE})
    code, figures = run(tmp_path, "--images", "4")
    assert code == 1
    assert [row["passed"] for row in figures["rows"]] == [True, False, None]
    assert figures["rows"][1]["note"].startswith("failed: FileNotFoundError")  # there is no behaviour file
    assert "FAILED: test_gpu_check other" in (tmp_path / "gpu-check.txt").read_text()
    assert "FileNotFoundError" in (tmp_path / "gpu-check.log").read_text()


def test_no_check_starts_after_the_deadline(tmp_path: Path) -> None:
    (tmp_path / BEHAVIOUR_FILE).write_text("work")
    context = CheckContext(str(tmp_path), time.time())
    rows = list(run_checks("x", list_checks(context), context))
    assert [row.note for row in rows] == ["not measured: no time left"] * 3
    assert gpu_results.find_failures(rows) == []


def test_unused_time_of_a_part_goes_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []

    def record_limit(
        part: str, settings: dict[str, Any], log: Path, seconds: float, *_: Any
    ) -> Iterator[Any]:
        limits.append(seconds)
        return iter(())

    monkeypatch.setattr(gpu_check, "PARTS", {"p": Part("first", 30, ""), "q": Part("second", 60, "")})
    monkeypatch.setattr(gpu_check, "_run_process", record_limit)
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert list(gpu_check._run_parts(["p", "q"], {"deadline": 1090.0}, tmp_path / "log")) == []
    assert limits == [30, 90]


def test_table_shows_missing_values_and_failures() -> None:
    rows = [
        Row("a", "rate", "images/s", cpu=1234.5, gpu=98765.4, goal="fast", passed=True),
        Row("a", "ratio", cpu=0.98765, goal=">= 1", passed=False, note="slow"),
        Row("b", "rate", "images/s"),
    ]
    _, first, second, third = gpu_results.format_text(rows).splitlines()
    assert first.split() == ["a", "rate", "images/s", "1,234", "98,765", "fast", "pass"]
    assert second.split() == ["a", "ratio", "0.988", "not", "measured", ">=", "1", "FAIL", "slow"]
    assert third.split() == ["b", "rate", "images/s", "not", "measured", "not", "measured"]
    markdown = gpu_results.format_markdown(rows).splitlines()
    assert markdown[3] == "| a | ratio |  | 0.988 | not measured | >= 1 | FAIL | slow |"
    report = gpu_results.format_report({"GPU": "none"}, rows, 7.0, {"a": "Fast is good."})
    assert "\n- a: Fast is good.\n" in report
    assert "FAILED: a ratio: slow" in report
    assert report.endswith("1 of 2 goals reached, 2 of 3 figures not measured on a GPU, 7 s")


def test_operations_are_counted_from_the_layers() -> None:
    import keras  # not in the processes that import this file

    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(5, 3)(image)  # [6, 6, 5], 27 products per value
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", groups=1)(x)  # [3, 3, 4], 45 products
    inner = keras.Sequential(
        [
            keras.Input((3, 3, 4)),
            keras.layers.DepthwiseConv2D(2),  # [2, 2, 4], 4 products
            keras.layers.Flatten(),
        ]
    )
    model = keras.Model(image, keras.layers.Dense(7)(inner(x)))  # [7], 16 products
    operations = [2 * 6 * 6 * 5 * 27, 2 * 3 * 3 * 4 * 45, 2 * 2 * 2 * 4 * 4, 2 * 7 * 16]
    assert count_operations(model) == (sum(operations), 3 * sum(operations) - operations[0])


def test_operations_of_vgg16_match_the_literature() -> None:
    import keras  # not in the processes that import this file

    forward, _ = count_operations(keras.applications.VGG16(weights=None))
    # 15.47 G multiply-adds at 224 x 224 (Simonyan and Zisserman, 2014).
    assert forward == pytest.approx(2 * 15.47e9, rel=1e-3)


def run(folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    code = gpu_check.main(["--smallest", "--out", str(folder), *options])
    return code, json.loads((folder / "gpu-check.json").read_text())


def check(figures: dict[str, Any], passed_by_part: dict[str, int]) -> None:
    """Checks that nothing failed, how many rows passed, and that every row without a value says why."""
    rows = figures["rows"]
    assert [row for row in rows if row["passed"] is False] == []
    passed = {
        part: sum(row["part"] == part and row["passed"] is True for row in rows) for part in passed_by_part
    }
    assert passed == passed_by_part
    assert all(row["gpu"] is None for row in rows)
    assert all(row["cpu"] is not None or "not measured" in row["note"] for row in rows)
    assert "none that TensorFlow detects" in figures["environment"]["GPU"]


@pytest.mark.e2e
@pytest.mark.slow
def test_smallest_form_runs_on_generated_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "REAL", tmp_path / "absent")
    monkeypatch.setattr(photos, "SIZE", 64)
    monkeypatch.setenv("GLASSBOX_LOGICAL_DEVICES", "8")
    code, figures = run(tmp_path / "out", "--part", "a", "--part", "b", "--part", "f")
    check(figures, {"a": 3, "b": 1, "f": 2})
    assert code == 0
    assert "generated" in figures["environment"]["photos"]
    assert "DLPack" in (tmp_path / "out" / "gpu-check.md").read_text()


@pytest.mark.slow
@pytest.mark.e2e
def test_smallest_form_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASSBOX_LOGICAL_DEVICES", "8")
    code, figures = run(tmp_path / "out", "--part", "c", "--part", "d", "--part", "e")
    check(figures, {"c": 6, "d": 0, "e": 2})
    assert code == 0


@pytest.mark.slow
@pytest.mark.e2e
def test_smallest_form_compares_eight_devices_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSBOX_LOGICAL_DEVICES", "8")
    parts = ("g", "h", "i", "j")
    code, figures = run(tmp_path / "out", *(word for part in parts for word in ("--part", part)))
    # Losses on 2, 4 and 8 devices, in a sharded cache and in two processes, whose weights agree
    check(figures, {"g": 0, "h": 6, "i": 2, "j": 1})
    assert code == 0
    notes = {row["name"]: row["note"] for row in figures["rows"]}
    assert "sharded" in notes["sharded cache on 8 devices: losses against one device"]


@pytest.mark.parametrize(
    ("visible", "pinned"), [(None, "0"), ("", ""), ("3,5", "3"), ("GPU-1a,GPU-2b", "GPU-1a")]
)
def test_parts_for_one_device_see_one_device(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, pinned: str
) -> None:
    monkeypatch.setenv("GLASSBOX_LOGICAL_DEVICES", "8")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    environment = gpu_check._pin_device()
    assert environment["CUDA_VISIBLE_DEVICES"] == pinned
    assert environment["GLASSBOX_LOGICAL_DEVICES"] == "1"
    monkeypatch.delenv("GLASSBOX_LOGICAL_DEVICES")
    assert "GLASSBOX_LOGICAL_DEVICES" not in gpu_check._pin_device()
