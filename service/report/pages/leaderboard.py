"""The page of a search: its trials in order, what each had, and how the score goes with every setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from pipelines.storage import write_atomically
from service.diagnosis.curves import best_epoch, column
from service.report.drawing.formatting import percent
from service.report.pages.index import SPARK, curve
from service.report.pages.page import render
from service.report.pages.scripts import scripts
from service.report.publish import PAGE
from service.runs import Run
from service.scores import standard_error

DOTS = (260, 150)  # width and height of a scatter plot
EDGE = 14


class Dimension(Protocol):
    """One setting that varied."""

    @property
    def key(self) -> str:
        """Its name, with dots."""

    @property
    def kind(self) -> str:
        """How it varied: `choice`, `uniform`, `loguniform`, `int`."""

    @property
    def values(self) -> tuple[Any, ...]:
        """The choices, or the bounds."""


@dataclass(frozen=True)
class Trial:
    """One run of a search.

    Attributes:
        run: Its directory.
        values: What it had other than the preset, by key.
        score: Its best validation accuracy; None where it has none.
        best_epoch: The epoch of that, from 1.
        epochs: Epochs it was trained.
        seconds: How long these took.
        state: How it ended.
        note: Why, where that needs saying.
        accuracies: Validation accuracy over the epochs.
    """

    run: Run
    values: Mapping[str, Any]
    score: float | None
    best_epoch: int | None
    epochs: int
    seconds: float
    state: str
    note: str
    accuracies: tuple[float, ...]

    @classmethod
    def of(cls, run: Run, values: Mapping[str, Any]) -> Trial:
        """What the directory of a run tells."""
        history, status = run.metrics(), run.status()
        accuracies = column(history, "val_accuracy")
        best = best_epoch(accuracies)
        return cls(
            run=run,
            values=values,
            score=None if best is None else accuracies[best],
            best_epoch=None if best is None else best + 1,
            epochs=len(history),
            seconds=sum(column(history, "seconds")),
            state=str(status.get("state", "")),
            note=str(status.get("reason") or ""),
            accuracies=tuple(value for value in accuracies if math.isfinite(value)),
        )


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """The best first; of equals the one that was trained longer, then the earlier; those that failed last."""
    return sorted(
        trials,
        key=lambda t: (
            t.state == "failed",
            -(-1.0 if t.score is None else t.score),
            -t.epochs,
            t.run.path.name,
        ),
    )


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The best trial of all that did not fail; None where no other has a score."""
    return next(
        (trial for trial in ranked(trials) if trial.score is not None and trial.state != "failed"), None
    )


def table(trials: Sequence[Trial], keys: Sequence[str]) -> str:
    """The trials as text, in their order."""
    rows = [["", "trial", "accuracy", "epochs", *keys, ""]]
    for place, trial in enumerate(trials, 1):
        values = [written(trial.values.get(key, "preset")) for key in keys]
        rows.append(
            [
                str(place),
                trial.run.path.name,
                percent(trial.score, 2),
                str(trial.epochs),
                *values,
                trial.note[:60],
            ]
        )
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def written(value: Any) -> str:
    """A setting as a person writes it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {written(inner)}" for key, inner in value.items())
    return {"None": "none", "True": "true", "False": "false"}.get(
        str(value), str(value)
    )  # by its text: 0.0 equals False


def write_leaderboard(
    out: Path, preset: str, trials: Sequence[Trial], space: Sequence[Dimension], images: int
) -> Path:
    """Writes the page, whole or not at all.

    Args:
        out: The directory of the search.
        preset: What was varied.
        trials: The best first.
        space: What varied.
        images: Validation images the trials were judged by.

    Returns:
        Its path.
    """
    best = best_of(trials)
    top = best.score if best and best.score is not None else None
    error = None if top is None else standard_error(top, images)
    near = [
        t
        for t in trials
        if top is not None and error is not None and t.score is not None and 0 <= top - t.score <= 2 * error
    ]
    pages = {trial.run.path.name: trial.run.report / PAGE for trial in trials}
    links = {name: quote(path.relative_to(out).as_posix()) for name, path in pages.items() if path.is_file()}
    values = {
        "preset": preset,
        "trials": trials,
        "best": best,
        "error": error,
        "near": len(near),
        "images": images,
        "keys": [dimension.key for dimension in space],
        "curves": {trial.run.path.name: curve(trial.accuracies) for trial in trials},
        "links": links,
        "dots": [dots(dimension, trials) for dimension in space],
        "spark": SPARK,
        "size": DOTS,
        "written": written,
        "seconds": sum(trial.seconds for trial in trials),
    }
    write_atomically(out / PAGE, render("leaderboard.html", scripts(plots=False), **values))
    return out / PAGE


def dots(dimension: Dimension, trials: Sequence[Trial]) -> dict[str, Any]:
    """How the score goes with one setting: a place for every trial that had a value and has a score, within `DOTS`.

    Returns:
        `key`; `x` and `y`, the words at the lower and the upper end of each axis; `points` of name, x, y and the words for it.
    """
    key = dimension.key
    scored = [
        (trial, trial.values[key], trial.score)
        for trial in trials
        if key in trial.values and trial.score is not None
    ]
    choices = dimension.kind == "choice"
    low, high = (0.0, float(max(len(dimension.values) - 1, 1))) if choices else map(float, dimension.values)
    scores = [score for _, _, score in scored] or [0.0, 1.0]
    bottom, top = min(scores), max(scores)
    width, height = DOTS
    points = []
    for trial, value, score in scored:
        at = float(dimension.values.index(value)) if choices else float(value)
        share = (
            math.log(at / low) / math.log(high / low)
            if dimension.kind == "loguniform"
            else (at - low) / (high - low)
        )
        x = EDGE + share * (width - 2 * EDGE)
        y = height - EDGE - (score - bottom) / ((top - bottom) or 1.0) * (height - 2 * EDGE)
        points.append((trial.run.path.name, round(x, 1), round(y, 1), f"{written(value)}: {percent(score)}"))
    ends = (dimension.values[0], dimension.values[-1])
    return {
        "key": key,
        "x": [written(end) for end in ends],
        "y": [percent(bottom), percent(top)],
        "points": points,
    }
