"""The page over all runs: what each is, how good, and a way in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipelines.errors import ConfigError
from pipelines.storage import write_atomically
from service.report.lease import SECONDS, hold_lease
from service.report.pages.page import render
from service.report.pages.scripts import scripts
from service.report.publish import MANIFEST, PAGE, is_report
from service.runs import Run

MARK = '<meta name="generator" content="glassbox runs">'
SPARK = (120, 28)  # width and height of the small curve


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        name: Relative to the directory of all.
        link: To its report, relative; empty where there is none.
        told: The head of its report's manifest; empty where there is none.
        accuracy: The best of its validation accuracies, or what the saved model has.
        curve: Points of its accuracy over the epochs, for an SVG of the size `SPARK`.
        pictures: Its thumbnails, their files relative to this page.
        note: What keeps it from having a new report.
        state: Of the run.
    """

    name: str
    link: str
    told: Mapping[str, Any]
    accuracy: float | None
    curve: str
    pictures: Sequence[Mapping[str, Any]]
    note: str
    state: str


def write_index(root: Path, runs: Mapping[str, Run], failed: Mapping[str, str]) -> Path:
    """Writes the page over all runs, whole or not at all, as they are at this moment.

    Args:
        root: Where it stands.
        runs: By their names.
        failed: Names of runs whose reports could not be made, and why.

    Returns:
        Its path.

    Raises:
        ConfigError: Something else stands there, or it cannot be written.
    """
    path = root / PAGE
    with hold_lease(root / ".reports.lock", wait=2 * SECONDS):
        if path.exists() and MARK not in path.read_text(errors="replace"):
            fix = "move it away"
            raise ConfigError(
                "no page of somebody else's where the one over all runs goes",
                f"{path} (holds something else)",
                fix,
            )
        rows = [_row(root, name, run, failed.get(name, "")) for name, run in runs.items()]
        rows.sort(key=lambda row: str(row.told.get("about", {}).get("finished", "")), reverse=True)
        html = render("index.html", scripts(plots=False), rows=rows, mark=MARK, spark=SPARK)
        try:
            if not path.exists() or path.read_text() != html:
                write_atomically(path, html)
        except OSError as error:
            raise ConfigError(
                "a directory that can be written", f"{path}: {error.strerror}", "see to its permissions"
            ) from None
    return path


def _row(root: Path, name: str, run: Run, failed: str) -> Row:
    told = _manifest(run)
    state = str(run.status().get("state", "not started"))
    summary = told.get("figures", {}).get("summary", {})
    best = summary.get("best_accuracy")
    epochs = told.get("figures", {}).get("curves", {}).get("epochs", [])
    folder = quote(run.report.relative_to(root).as_posix())
    pictures = [{**picture, "file": f"{folder}/{picture['file']}"} for picture in told.get("thumbnails", ())]
    note = failed.partition("\n")[0] or ("" if state == "finished" else f"not finished: {state}")
    link = f"{folder}/{PAGE}" if told else ""
    return Row(
        name,
        link,
        told,
        summary.get("accuracy") if best is None else best,
        curve(_scores(epochs)),
        pictures,
        note,
        state,
    )


def curve(values: Sequence[float]) -> str:
    """Points of a line through values in [0, 1], from left to right, for an SVG of the size `SPARK`; empty below two values."""
    width, height = SPARK
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    step = (width - 4) / (len(values) - 1)
    return " ".join(
        f"{2 + n * step:.1f},{height - 3 - (value - low) / span * (height - 6):.1f}"
        for n, value in enumerate(values)
    )


def _scores(epochs: Sequence[Mapping[str, Any]]) -> list[float]:
    key = (
        "val_accuracy"
        if any(isinstance(epoch.get("val_accuracy"), float) for epoch in epochs)
        else "accuracy"
    )
    return [float(epoch[key]) for epoch in epochs if isinstance(epoch.get(key), int | float)]


def _manifest(run: Run) -> dict[str, Any]:
    if not is_report(run.report) or not (run.report / PAGE).is_file():
        return {}
    return dict(json.loads((run.report / MANIFEST).read_bytes()))
