"""The index page of all runs: settings, accuracy and a link to the report of each run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipelines.errors import ConfigError
from pipelines.storage import write_atomically
from service.report.lease import LEASE_SECONDS, hold_lease
from service.report.pages.page import render
from service.report.pages.scripts import load_scripts
from service.report.publish import MANIFEST, PAGE, is_report
from service.runs import Run

GENERATOR = '<meta name="generator" content="glassbox runs">'  # identifies an index page
SPARKLINE = (120, 28)  # width and height of the small curve, in pixels


@dataclass(frozen=True)
class Row:
    """A run on the index page.

    Attributes:
        name: Path of the run relative to the directory of all runs.
        link: Relative link to its report; empty without a report.
        manifest: Manifest of its report; empty without a report.
        accuracy: Best validation accuracy, or that of the saved model if there is no validation.
        curve: Points of its accuracy over the epochs, for an SVG of size `SPARKLINE`.
        pictures: Thumbnails of its report, with file names relative to the index page.
        note: Reason why the run has no new report; empty if it has one.
        state: State of the run, see `service.runs.Run.status`.
    """

    name: str
    link: str
    manifest: Mapping[str, Any]
    accuracy: float | None
    curve: str
    pictures: Sequence[Mapping[str, Any]]
    note: str
    state: str


def write_index(root: Path, runs: Mapping[str, Run], failures: Mapping[str, str]) -> Path:
    """Writes the index page of all runs, completely or not at all.

    Args:
        root: Directory of the page.
        runs: Runs by their names.
        failures: Error messages of reports that could not be rendered, by the names of their runs.

    Returns:
        The path of the page.

    Raises:
        ConfigError: Another page is in its place, or it cannot be written.
    """
    path = root / PAGE
    with hold_lease(root / ".reports.lock", wait=2 * LEASE_SECONDS):
        if path.exists() and GENERATOR not in path.read_text(errors="replace"):
            raise ConfigError(
                "no other page in place of the index of all runs",
                f"{path} (holds something else)",
                "move it elsewhere",
            )
        rows = [_build_row(root, name, run, failures.get(name, "")) for name, run in runs.items()]
        rows.sort(key=lambda row: str(row.manifest.get("about", {}).get("finished", "")), reverse=True)
        html = render(
            "index.html", load_scripts(plots=False), rows=rows, generator=GENERATOR, sparkline=SPARKLINE
        )
        try:
            if not path.exists() or path.read_text() != html:
                write_atomically(path, html)
        except OSError as error:
            raise ConfigError(
                "a directory that can be written", f"{path}: {error.strerror}", "check its permissions"
            ) from None
    return path


def compute_sparkline(values: Sequence[float]) -> str:
    """Computes the points of a line through values, from left to right, for an SVG of size `SPARKLINE`.

    Args:
        values: Values in [0, 1], oldest first.

    Returns:
        The points; empty for fewer than two values.
    """
    if len(values) < 2:
        return ""
    width, height = SPARKLINE
    lowest = min(values)
    span = (max(values) - lowest) or 1.0
    step = (width - 4) / (len(values) - 1)
    points = []
    for index, value in enumerate(values):
        x = 2 + index * step
        y = height - 3 - (value - lowest) / span * (height - 6)
        points.append(f"{x:.1f},{y:.1f}")
    return " ".join(points)


def _build_row(root: Path, name: str, run: Run, failure: str) -> Row:
    manifest = _read_manifest(run)
    state = str(run.status().get("state", "not started"))
    figures = manifest.get("figures", {})
    summary = figures.get("summary", {})
    epochs = figures.get("curves", {}).get("epochs", [])
    accuracy = summary.get("best_accuracy")
    if accuracy is None:
        accuracy = summary.get("accuracy")
    note = failure.partition("\n")[0]
    if not note and state != "finished":
        note = f"not finished: {state}"
    folder = quote(run.report.relative_to(root).as_posix())
    pictures = [
        {**picture, "file": f"{folder}/{picture['file']}"} for picture in manifest.get("thumbnails", ())
    ]
    return Row(
        name,
        f"{folder}/{PAGE}" if manifest else "",
        manifest,
        accuracy,
        compute_sparkline(_list_accuracies(epochs)),
        pictures,
        note,
        state,
    )


def _list_accuracies(epochs: Sequence[Mapping[str, Any]]) -> list[float]:
    has_validation = any(isinstance(epoch.get("val_accuracy"), float) for epoch in epochs)
    key = "val_accuracy" if has_validation else "accuracy"
    return [float(epoch[key]) for epoch in epochs if isinstance(epoch.get(key), int | float)]


def _read_manifest(run: Run) -> dict[str, Any]:
    if not is_report(run.report) or not (run.report / PAGE).is_file():
        return {}
    return dict(json.loads((run.report / MANIFEST).read_bytes()))
