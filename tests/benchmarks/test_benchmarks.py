"""The benchmarks run, and compute their figures correctly. No test depends on how fast anything is."""

from __future__ import annotations

import json
import math
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import input
import large
import numpy as np
import photos
import plot
import plot_runs
import pytest
import results
import shards
from fault_lab import describe_ray
from harness import CORES, Candidate, Measurement, run_candidates
from results import LIMIT, Benchmark, Goal, compute_ratio


def build_candidate(name: str, function: str, **settings: str) -> Candidate:
    return Candidate(name, f"sample_candidates:{function}", settings)


def discard_progress(line: str) -> None:
    pass


def test_rounds_are_interleaved_after_a_warm_up_round(tmp_path: Path) -> None:
    path = tmp_path / "rounds"
    candidates = [build_candidate(word, "write_word", word=word, path=str(path)) for word in "abc"]
    measurements = run_candidates(candidates, 3, tmp_path / "log", discard_progress)
    assert path.read_text() == "abc" + "abc" + "cba" + "abc"
    assert measurements["b"].seconds == [0.25] * 3
    assert len(measurements["b"].cpu) == len(measurements["b"].others) == 3
    assert "Python" in measurements["b"].versions


def test_failing_candidate_reports_its_reason_and_stops_no_other(tmp_path: Path) -> None:
    candidates = [
        Candidate("absent", "no_such_module:run"),
        build_candidate("broken", "fail", reason="out of order"),
        build_candidate("fine", "write_word", word="x", path=str(tmp_path / "rounds")),
    ]
    measurements = run_candidates(candidates, 1, tmp_path / "log", discard_progress)
    assert measurements["absent"].reason == "not installed: No module named 'no_such_module'"
    assert measurements["broken"].reason == "failed: ValueError: out of order"
    assert measurements["fine"].reason is None
    assert "out of order" in (tmp_path / "log").read_text()


def test_code_of_an_earlier_checkout_is_measured_beside_this_one(tmp_path: Path) -> None:
    (tmp_path / "only_before.py").write_text("def run():\n    yield\n    while True:\n        yield 0.5\n")
    candidates = [
        Candidate("before", "only_before:run", checkout=str(tmp_path)),
        Candidate("now", "only_before:run"),
    ]
    measurements = run_candidates(candidates, 1, tmp_path / "log", discard_progress)
    assert measurements["before"].seconds == [0.5]
    assert measurements["now"].reason == "not installed: No module named 'only_before'"


def test_earlier_candidates_are_those_of_this_project(tmp_path: Path) -> None:
    now = input.list_candidates(tmp_path, tmp_path, None)
    before = {entry.name: entry for entry in input.list_earlier_candidates(now, tmp_path)}
    assert {"before: exact", "before: exact, 8 devices, DALI on the CPU"} <= set(before)
    assert {entry.checkout for entry in before.values()} == {str(tmp_path.resolve())}
    names = {entry.name: entry for entry in now}
    for name, entry in before.items():
        assert entry.settings == names[name.replace("before", "ours")].settings


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # Ratios of 3, 1 and 4 by round; the medians of the seconds alone would give 2.
    assert compute_ratio([1.0, 4.0, 2.0], [3.0, 4.0, 8.0]) == 3.0


def build_measurement(*seconds: float) -> Measurement:
    return Measurement(list(seconds), [2 * value for value in seconds], [0.0] * len(seconds))


def test_figures_of_known_rounds() -> None:
    candidates = [Candidate(name, "") for name in ("raw a", "raw b", "ours", "peer", "gone")]
    candidates.append(Candidate("reader", "", cores=1, is_plotted=False))
    goals = [
        Goal("ours", "ours", LIMIT, 0.5, "half"),
        Goal("peer", "ours", "peer", 3.0, "three times"),
        Goal("gone", "ours", "gone", 1.0, "faster"),
        Goal("reader", "reader", LIMIT, 0.05, "little", is_overhead=True),
    ]
    measurements = {
        "raw a": build_measurement(2.0, 2.0, 2.0),
        "raw b": build_measurement(1.0, 1.0, 9.0),
        "ours": build_measurement(2.0, 2.0, 6.0),
        "peer": build_measurement(5.0, 5.0, 15.0),
        "gone": Measurement(reason="not installed: it"),
        "reader": build_measurement(0.08, 0.08, 0.08),
    }
    benchmark = Benchmark(candidates, goals, ["raw a", "raw b"])
    figures = results.compute_figures(benchmark, measurements, images=100)
    rows = {row["name"]: row for row in figures["rows"]}
    assert figures["limit"] == "raw b"  # by its median, in spite of its slowest round
    assert rows["ours"]["images_per_second"] == 50
    assert rows["ours"]["lowest"] == pytest.approx(100 / 6)
    assert rows["ours"]["highest"] == 50
    assert rows["ours"]["ms_per_image"] == 20 * CORES
    assert rows["ours"]["cpu_ms_per_image"] == 40
    assert rows["ours"]["of_limit"] == 0.5
    assert rows["ours"]["goal"] == {"text": "half", "value": 0.5, "reached": True}
    assert rows["peer"]["goal"] == {"text": "three times", "value": 2.5, "reached": False}
    assert rows["gone"] == {"name": "gone", "reason": "not installed: it", "drawn": False, "goal": None}
    overhead = 0.08 / CORES
    assert rows["reader"]["goal"] == {
        "text": "little",
        "value": pytest.approx(overhead),
        "reached": overhead <= 0.05,
    }
    assert rows["reader"]["ms_per_image"] == pytest.approx(0.8)
    assert not rows["reader"]["drawn"]


def build_figures(rates: dict[str, float]) -> dict[str, object]:
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


def test_bars_are_sorted_and_proportional_to_the_figures() -> None:
    figures = build_figures({"raw: it": 100.0, "ours: it": 400.0, "theirs <it>": 50.0})
    drawing = ET.fromstring(plot.render_chart(figures))
    bars = [
        (box.get("class"), float(box.get("width", 0)))
        for box in drawing.findall(".//{*}rect")
        if float(box.get("x", 0)) == plot.LABEL_WIDTH
    ]
    assert bars == [("ours", plot.BAR_WIDTH), ("raw", plot.BAR_WIDTH / 4), ("peer", plot.BAR_WIDTH / 8)]
    texts = ["".join(text.itertext()) for text in drawing.findall(".//{*}text")]
    assert "glassbox: it" in texts
    assert "theirs <it>" in texts


def test_curves_of_runs_are_drawn_at_their_values() -> None:
    curves = [("seed 0", [(5, 0.75), (10, 1.0)]), ("seed <1>", [(5, 0.5), (10, 0.99)])]
    drawing = ET.fromstring(plot_runs.render_curves("two", curves))
    lines = [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in drawing.findall(".//{*}polyline")
    ]
    left = plot_runs.LEFT
    right = plot_runs.WIDTH - plot_runs.RIGHT
    top = plot_runs.TOP
    bottom = plot_runs.HEIGHT - plot_runs.BOTTOM
    middle = ((left + right) / 2, (top + bottom) / 2)
    assert lines[0] == [middle, (right, top)]
    assert lines[1][0] == (middle[0], bottom)
    labels = {
        text.text: float(text.get("y"))
        for text in drawing.findall(".//{*}text")
        if "name" in text.get("class")
    }
    assert list(labels) == ["seed 0: 100.0%", "seed <1>: 99.0%"]
    # The curves end 2 pixels apart, and their labels must not overlap.
    assert labels["seed <1>: 99.0%"] - labels["seed 0: 100.0%"] == plot_runs.LABEL_GAP


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Options for one round on eight generated photos."""
    monkeypatch.setattr(photos, "REAL", tmp_path / "absent")
    monkeypatch.setattr(photos, "SIZE", 48)
    json_path = str(tmp_path / "run.json")
    plot_path = str(tmp_path / "run.svg")
    return ["--images", "8", "--rounds", "1", "--json", json_path, "--plot", plot_path]


def select(*names: str) -> list[str]:
    return [word for name in names for word in ("--only", name)]


def check(run: dict[str, object], names: set[str], goals: set[str], tmp_path: Path) -> None:
    rows = {row["name"]: row for row in run["rows"]}  # type: ignore[attr-defined]
    assert set(rows) == names
    for row in rows.values():
        assert "reason" not in row, row
        for key in ("images_per_second", "ms_per_image", "of_limit"):
            assert math.isfinite(row[key])
            assert row[key] > 0
    finite = {name for name, row in rows.items() if row["goal"] and math.isfinite(row["goal"]["value"])}
    assert finite == goals
    assert json.loads((tmp_path / "run.json").read_text()) == run
    assert ET.parse(tmp_path / "run.svg").getroot().tag.endswith("svg")


@pytest.mark.e2e
def test_input_benchmark_runs(
    ray_cluster: None, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = input.main([*options, *select("simplejpeg", input.READER, input.FAST)])
    check(run, {*input.LIMITS, input.READER, input.FAST}, {input.READER, input.FAST}, tmp_path)
    output = capsys.readouterr().out
    assert ">= 0.8 of the limit" in output
    assert "generated photos" in output


@pytest.mark.e2e
def test_shards_benchmark_runs(
    ray_cluster: None, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in describe_ray().items():  # saves another start of Ray
        monkeypatch.setenv(name, value)
    goals = {shards.AS_FOUND, shards.HEADER}
    run = shards.main([*options, *select("decode, threads", shards.COPY, *goals)])
    check(run, {shards.LIMITS[0], shards.COPY, *goals}, goals, tmp_path)


@pytest.mark.e2e
def test_large_benchmark_measures_driver_and_workers(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(large, "QUICK", (20, 40))
    run = shards.main(["--large", "--quick"])
    assert run["images"] == [20, 40, 20]
    assert math.isfinite(run["speed_kept"])
    assert "driver" in run["peak_gib"]
    assert any(name.startswith("ray::") for name in run["peak_gib"])
    assert "GiB, goal < 1.0" in capsys.readouterr().out


def test_peak_memory_includes_memory_that_was_freed() -> None:
    def wait_for_peak(minimum: int) -> None:
        deadline = time.monotonic() + 600
        while memory.peaks.get("driver", 0) < minimum and time.monotonic() < deadline:
            time.sleep(0.005)

    with large.PeakMemory(0.005) as memory:
        wait_for_peak(1)
        before = memory.peaks["driver"]
        block = np.ones(100 * 2**20, np.uint8)
        wait_for_peak(before + 90 * 2**20)
        del block
    assert memory.peaks["driver"] >= before + 90 * 2**20


def test_peak_memory_of_a_block_shorter_than_an_interval() -> None:
    with large.PeakMemory(60) as memory:
        pass
    assert memory.peaks["driver"] > 10 * 2**20


def test_part_of_the_photos_is_even_over_classes_and_files(tmp_path: Path) -> None:
    for name, count in (("a", 5), ("b", 20)):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "data" / "train" / name / f"{number:02d}.jpg").touch()
    (tmp_path / "data" / "train" / "b" / "note.txt").touch()
    part = tmp_path / "part"
    assert photos.stage(tmp_path / "data", 8, part) == (8, "photos of data")
    assert sorted(str(path.relative_to(part)) for path in part.glob("*/*")) == [
        *(f"a/0{number}.jpg" for number in (0, 1, 2, 3)),
        *(f"b/{number:02d}.jpg" for number in (0, 5, 10, 15)),
    ]
    assert photos.stage(tmp_path / "data", None, tmp_path / "all") == (25, "photos of data")
    with pytest.raises(SystemExit, match="Expected folders of JPEG photos"):
        photos.stage(part / "a", None, tmp_path / "none")
