"""That the benchmarks run and calculate rightly. How fast anything is, no test asks."""

from __future__ import annotations

import json
import math
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import input
import large
import numpy as np
import photos
import plot
import plot_runs
import pytest
import shards
import table
from arena import CORES, Contestant, Outcome, compete
from table import LIMIT, Field, Goal, times_as_fast


def logged(word: str, path: str) -> Iterator[float | None]:
    """A contestant that writes down its rounds; it runs in a worker process."""
    yield None
    while True:
        with open(path, "a") as file:
            file.write(word)
        yield 0.25


def broken(reason: str) -> Iterator[float | None]:
    """A contestant that breaks in its first round."""
    yield None
    raise ValueError(reason)


def entry(name: str, function: str, **settings: str) -> Contestant:
    return Contestant(name, f"test_benchmarks:{function}", settings)


def test_rounds_are_interleaved_after_one_of_warming_up(tmp_path: Path) -> None:
    path = tmp_path / "rounds"
    crowd = [entry(word, "logged", word=word, path=str(path)) for word in "abc"]
    outcomes = compete(crowd, 3, tmp_path / "log", lambda line: None)
    assert path.read_text() == "abc" + "abc" + "cba" + "abc"
    assert outcomes["b"].seconds == [0.25] * 3
    assert len(outcomes["b"].cpu) == len(outcomes["b"].others) == 3
    assert "Python" in outcomes["b"].versions


def test_who_cannot_run_says_why_and_stops_nobody(tmp_path: Path) -> None:
    crowd = [
        Contestant("absent", "no_such_module:run"),
        entry("broken", "broken", reason="out of order"),
        entry("fine", "logged", word="x", path=str(tmp_path / "rounds")),
    ]
    outcomes = compete(crowd, 1, tmp_path / "log", lambda line: None)
    assert outcomes["absent"].reason == "not installed: No module named 'no_such_module'"
    assert outcomes["broken"].reason == "failed: ValueError: out of order"
    assert outcomes["fine"].reason is None
    assert "out of order" in (tmp_path / "log").read_text()


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # round by round 3, 1 and 4; the medians of the seconds alone would give 2
    assert times_as_fast([1.0, 4.0, 2.0], [3.0, 4.0, 8.0]) == 3.0


def outcome(*seconds: float) -> Outcome:
    return Outcome(list(seconds), [2 * value for value in seconds], [0.0] * len(seconds))


def test_figures_of_known_rounds() -> None:
    field = Field(
        [Contestant(name, "") for name in ("raw a", "raw b", "ours", "peer", "gone")]
        + [Contestant("reader", "", cores=1, drawn=False)],
        [
            Goal("ours", "ours", LIMIT, 0.5, "half"),
            Goal("peer", "ours", "peer", 3.0, "thrice"),
            Goal("gone", "ours", "gone", 1.0, "ahead"),
            Goal("reader", "reader", LIMIT, 0.05, "little", overhead=True),
        ],
        ["raw a", "raw b"],
    )
    outcomes = {
        "raw a": outcome(2.0, 2.0, 2.0),
        "raw b": outcome(1.0, 1.0, 9.0),
        "ours": outcome(2.0, 2.0, 6.0),
        "peer": outcome(5.0, 5.0, 15.0),
        "gone": Outcome(reason="not installed: it"),
        "reader": outcome(0.08, 0.08, 0.08),
    }
    figures = table.results(field, outcomes, images=100)
    rows = {row["name"]: row for row in figures["rows"]}
    assert figures["limit"] == "raw b"  # by its median, whatever its worst round
    assert rows["ours"]["images_per_second"] == 50
    assert (rows["ours"]["lowest"], rows["ours"]["highest"]) == (pytest.approx(100 / 6), 50)
    assert rows["ours"]["ms_per_image"] == 20 * CORES
    assert rows["ours"]["cpu_ms_per_image"] == 40
    assert rows["ours"]["of_limit"] == 0.5
    assert rows["ours"]["goal"] == {"text": "half", "value": 0.5, "reached": True}
    assert rows["peer"]["goal"] == {"text": "thrice", "value": 2.5, "reached": False}
    assert rows["gone"] == {"name": "gone", "reason": "not installed: it", "drawn": False, "goal": None}
    assert rows["reader"]["goal"] == {
        "text": "little",
        "value": pytest.approx(0.08 / CORES),
        "reached": 0.08 / CORES <= 0.05,
    }
    assert rows["reader"]["ms_per_image"] == pytest.approx(0.8)
    assert not rows["reader"]["drawn"]


def figures(rates: dict[str, float]) -> dict[str, object]:
    rows = [
        {
            "name": name,
            "drawn": True,
            "images_per_second": rate,
            "lowest": rate,
            "highest": rate,
            "of_limit": 1.0,
        }
        for name, rate in rates.items()
    ]
    host = {"cores": 2, "cpu": "A & B"}
    return {"title": "t", "images": 2, "note": "n", "rounds": 5, "date": "d", "machine": host, "rows": rows}


def test_bars_are_as_long_as_their_figures_and_in_order() -> None:
    drawing = ET.fromstring(plot.svg(figures({"raw: it": 100.0, "ours: it": 400.0, "theirs <it>": 50.0})))
    bars = [
        (box.get("class"), float(box.get("width", 0)))
        for box in drawing.findall(".//{*}rect")
        if float(box.get("x", 0)) == plot.LABELS
    ]
    assert bars == [("ours", plot.BARS), ("raw", plot.BARS / 4), ("peer", plot.BARS / 8)]
    texts = ["".join(text.itertext()) for text in drawing.findall(".//{*}text")]
    assert "glassbox: it" in texts
    assert "theirs <it>" in texts


def test_the_curves_of_runs_lie_where_their_values_are() -> None:
    drawing = ET.fromstring(
        plot_runs.svg("two", [("seed 0", [(5, 0.75), (10, 1.0)]), ("seed <1>", [(5, 0.5), (10, 0.99)])])
    )
    lines = [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in drawing.findall(".//{*}polyline")
    ]
    left, right, top, bottom = (
        plot_runs.LEFT, plot_runs.WIDTH - plot_runs.RIGHT, plot_runs.TOP, plot_runs.HEIGHT - plot_runs.BOTTOM,
    )  # fmt: skip
    middle = ((left + right) / 2, (top + bottom) / 2)
    assert lines[0] == [middle, (right, top)]
    assert lines[1][0] == (middle[0], bottom)
    names = {
        text.text: float(text.get("y"))
        for text in drawing.findall(".//{*}text")
        if "name" in text.get("class")
    }
    assert list(names) == ["seed 0: 100.0%", "seed <1>: 99.0%"]
    assert names["seed <1>: 99.0%"] - names["seed 0: 100.0%"] == 15  # their ends are 2 apart


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Options for a run on a handful of generated photos."""
    monkeypatch.setattr(photos, "REAL", tmp_path / "not there")
    monkeypatch.setattr(photos, "SIZE", 48)
    return [
        "--images",
        "8",
        "--rounds",
        "1",
        "--json",
        str(tmp_path / "run.json"),
        "--plot",
        str(tmp_path / "run.svg"),
    ]


def check(run: dict[str, object], names: set[str], goals: set[str], tmp_path: Path) -> None:
    rows = {row["name"]: row for row in run["rows"]}  # type: ignore[attr-defined]
    assert set(rows) == names
    for row in rows.values():
        assert "reason" not in row, row
        assert all(
            math.isfinite(row[key]) and row[key] > 0
            for key in ("images_per_second", "ms_per_image", "of_limit")
        )
    assert {
        name for name, row in rows.items() if row["goal"] and math.isfinite(row["goal"]["value"])
    } == goals
    assert json.loads((tmp_path / "run.json").read_text()) == run
    assert ET.parse(tmp_path / "run.svg").getroot().tag.endswith("svg")


@pytest.mark.e2e
def test_input_runs(
    ray_cluster: None, generated: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = input.main([*generated, "--only", "simplejpeg", "--only", input.READER, "--only", input.FAST])
    check(run, {*input.LIMITS, input.READER, input.FAST}, {input.READER, input.FAST}, tmp_path)
    out = capsys.readouterr().out
    assert ">= 0.8 of the limit" in out
    assert "generated photos" in out


@pytest.mark.e2e
def test_shards_run(generated: list[str], tmp_path: Path) -> None:
    run = shards.main(
        [
            *generated,
            "--only",
            "decode, threads",
            "--only",
            shards.COPY,
            "--only",
            shards.FOUND,
            "--only",
            shards.HEADER,
        ]
    )
    check(
        run,
        {shards.LIMITS[0], shards.COPY, shards.FOUND, shards.HEADER},
        {shards.FOUND, shards.HEADER},
        tmp_path,
    )


@pytest.mark.e2e
def test_memory_is_watched(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(large, "QUICK", (20, 40))
    run = shards.main(["--large", "--quick"])
    assert run["images"] == [20, 40, 20]
    assert math.isfinite(run["speed_kept"])
    assert "driver" in run["peak_gib"]
    assert any(name.startswith("ray::") for name in run["peak_gib"])
    assert "GiB, goal < 1.0" in capsys.readouterr().out


def test_peak_memory_outlives_what_took_it() -> None:
    def seen(least: int) -> None:
        deadline = time.monotonic() + 20
        while memory.peaks.get("driver", 0) < least and time.monotonic() < deadline:
            time.sleep(0.005)

    with large.PeakMemory(0.005) as memory:
        seen(1)
        before = memory.peaks["driver"]
        block = np.ones(100 * 2**20, np.uint8)
        seen(before + 90 * 2**20)
        del block
        time.sleep(0.05)
    assert memory.peaks["driver"] >= before + 90 * 2**20


def test_peak_memory_of_a_block_shorter_than_a_pause() -> None:
    with large.PeakMemory(60) as memory:
        pass
    assert memory.peaks["driver"] > 10 * 2**20


def test_a_part_of_the_photos_is_even(tmp_path: Path) -> None:
    for kind, count in (("a", 5), ("b", 20)):
        (tmp_path / "data" / "train" / kind).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "data" / "train" / kind / f"{number:02d}.jpg").touch()
    (tmp_path / "data" / "train" / "b" / "note.txt").touch()
    assert photos.stage(tmp_path / "data", 8, tmp_path / "part") == (8, "photos of data")
    assert sorted(str(path.relative_to(tmp_path / "part")) for path in (tmp_path / "part").glob("*/*")) == [
        *(f"a/0{number}.jpg" for number in (0, 1, 2, 3)),
        *(f"b/{number:02d}.jpg" for number in (0, 5, 10, 15)),
    ]
    assert photos.stage(tmp_path / "data", None, tmp_path / "all") == (25, "photos of data")
    with pytest.raises(SystemExit, match="Expected folders of JPEG photos"):
        photos.stage(tmp_path / "part" / "a", None, tmp_path / "none")
