"""The command line that all benchmarks share: photos, contestants, rounds, table, JSON, plot."""

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
import table
from arena import compete
from table import Field

QUICK_IMAGES, QUICK_ROUNDS = 128, 1


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="folder of classes, or of train/ with classes (default: the real photos)",
    )
    made.add_argument("--images", type=int, metavar="N", help="only N of the photos, evenly from all classes")
    made.add_argument(
        "--rounds", type=int, metavar="N", help="rounds that count, after one of warming up (default: 5)"
    )
    made.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_IMAGES} images, {QUICK_ROUNDS} round: whether everything runs",
    )
    made.add_argument(
        "--only",
        action="append",
        metavar="WORD",
        help="only contestants with this word in their name; may be repeated",
    )
    made.add_argument(
        "--scratch", type=Path, metavar="DIR", help="where shards and outputs may lie (default: the system's)"
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    made.add_argument("--plot", type=Path, metavar="FILE.svg", help="write a bar chart")
    return made


def run(title: str, options: argparse.Namespace, enter: Callable[[Path, Path], Field]) -> dict[str, Any]:
    """Runs a benchmark and prints its table.

    Args:
        title: What is measured.
        options: From `parser`.
        enter: Takes the folder of photos and a directory for anything else, and says who takes part.

    Returns:
        The figures, as in the JSON file.
    """
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else 5)
    with tempfile.TemporaryDirectory(prefix="glassbox-benchmark-", dir=options.scratch) as name:
        scratch = Path(name)
        images, note = photos.stage(
            options.data, options.images or (QUICK_IMAGES if options.quick else None), scratch / "photos"
        )
        field = enter(scratch / "photos", scratch)
        field = field._replace(
            contestants=[entry for entry in field.contestants if _wanted(entry.name, options.only)]
        )
        images, note = field.images or images, field.note or note
        before, log = table.load(), scratch / "log"
        outcomes = compete(field.contestants, rounds, log, say)
        if any("failed" in (outcome.reason or "") for outcome in outcomes.values()):
            say(log.read_text(errors="replace")[-6000:])
    figures = table.results(field, outcomes, images)
    versions = {
        name: version for outcome in reversed(outcomes.values()) for name, version in outcome.versions.items()
    }
    about = {"title": title, "note": note, "rounds": rounds, "date": time.strftime("%Y-%m-%d")}
    figures = (
        about
        | {"load_before": before, "load_after": table.load(), "machine": table.machine(versions)}
        | figures
    )
    print(table.text(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.plot:
        options.plot.write_text(plot.svg(figures))
    return figures


def _wanted(name: str, words: list[str] | None) -> bool:
    return not words or any(word in name for word in words)


def say(line: str) -> None:
    """Prints a line about the progress where it does not mix with the table."""
    print(line, file=sys.stderr, flush=True)
