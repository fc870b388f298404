"""Command line shared by all benchmarks: photos, candidates, rounds, table, JSON and chart."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import photos
import plot
import results
from harness import Measurement, run_candidates
from results import Benchmark

DEFAULT_ROUNDS = 5
QUICK_IMAGES = 128
QUICK_ROUNDS = 1
LOG_TAIL = 6000  # characters of the log shown after a failure


def build_parser(description: str) -> argparse.ArgumentParser:
    """Builds a parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="folder of classes, or of train/ with classes (default: the real photos)",
    )
    add("--images", type=int, metavar="N", help="use N of the photos, evenly from all classes")
    add(
        "--rounds",
        type=int,
        metavar="N",
        help=f"measured rounds, after a warm-up round (default: {DEFAULT_ROUNDS})",
    )
    add(
        "--quick",
        action="store_true",
        help=f"check that everything runs: {QUICK_IMAGES} images, {QUICK_ROUNDS} round",
    )
    add(
        "--only",
        action="append",
        metavar="WORD",
        help="run only candidates with this word in their name; may be repeated",
    )
    add(
        "--scratch", type=Path, metavar="DIR", help="directory for shards and outputs (default: the system's)"
    )
    add("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    add("--plot", type=Path, metavar="FILE.svg", help="write a bar chart")
    return parser


def run(title: str, options: argparse.Namespace, build: Callable[[Path, Path], Benchmark]) -> dict[str, Any]:
    """Runs a benchmark and prints its table.

    Args:
        title: Description of what is measured.
        options: Options of `build_parser`.
        build: Builds the benchmark from the folder of photos and a directory for anything else.

    Returns:
        The figures, as in the JSON file.
    """
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else DEFAULT_ROUNDS)
    count = options.images or (QUICK_IMAGES if options.quick else None)
    with tempfile.TemporaryDirectory(prefix="glassbox-benchmark-", dir=options.scratch) as name:
        scratch = Path(name)
        images, note = photos.stage(options.data, count, scratch / "photos")
        benchmark = _select(build(scratch / "photos", scratch), options.only)
        load_before = results.read_load()
        log = scratch / "log"
        measurements = run_candidates(benchmark.candidates, rounds, log, log_progress)
        if any("failed" in (measurement.reason or "") for measurement in measurements.values()):
            log_progress(log.read_text(errors="replace")[-LOG_TAIL:])
    figures = {
        "title": title,
        "note": benchmark.note or note,
        "rounds": rounds,
        "date": time.strftime("%Y-%m-%d"),
        "load_before": load_before,
        "load_after": results.read_load(),
        "machine": results.describe_machine(_merge_versions(measurements)),
    }
    figures |= results.compute_figures(benchmark, measurements, benchmark.images or images)
    print(results.format_table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.plot:
        options.plot.write_text(plot.render_chart(figures))
    return figures


def _select(benchmark: Benchmark, words: list[str] | None) -> Benchmark:
    """Keeps the candidates whose names contain one of the words; without words, all."""
    if not words:
        return benchmark
    candidates = [entry for entry in benchmark.candidates if any(word in entry.name for word in words)]
    return benchmark._replace(candidates=candidates)


def _merge_versions(measurements: dict[str, Measurement]) -> dict[str, str]:
    """Merges the versions of all candidates; where they differ, the first candidate's are kept."""
    versions: dict[str, str] = {}
    for measurement in reversed(measurements.values()):
        versions |= measurement.versions
    return versions


def log_progress(line: str) -> None:
    """Prints a line to standard error, apart from the table."""
    print(line, file=sys.stderr, flush=True)
