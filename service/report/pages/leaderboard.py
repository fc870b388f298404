"""The leaderboard page of a search: ranked trials, and scatter plots of the accuracy over every setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from rich.table import Table

from pipelines.storage import write_atomically
from pipelines.text import render_table
from service.diagnosis.curves import best_epoch, column
from service.report.drawing.formatting import percent
from service.report.pages.index import SPARKLINE, compute_sparkline
from service.report.pages.page import render
from service.report.pages.scripts import load_scripts
from service.report.publish import PAGE
from service.runs import Run
from service.scores import standard_error

SCATTER_SIZE = (260, 150)  # width and height of a scatter plot, in pixels
SCATTER_MARGIN = 14
NOTE_LENGTH = 60  # characters of a trial's note in the text table


class Dimension(Protocol):
    """One setting that the search varies."""

    @property
    def key(self) -> str:
        """Key of the setting in a configuration, such as `optimizer.learning_rate`."""

    @property
    def kind(self) -> str:
        """Distribution of the values: `choice`, `uniform`, `loguniform` or `int`."""

    @property
    def values(self) -> tuple[Any, ...]:
        """The choices, or the lower and upper bound."""


@dataclass(frozen=True)
class Trial:
    """One run of a search.

    Attributes:
        run: Run directory of the trial.
        values: Settings that differ from the preset, by key.
        score: Best validation accuracy; None without one.
        best_epoch: Epoch of that accuracy, from 1; None without one.
        epochs: Number of epochs trained.
        seconds: Training time of these epochs.
        state: State of the run, see `service.runs.Run.status`.
        note: Reason why the run ended in this state; empty for an ordinary end.
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
    def from_run(cls, run: Run, values: Mapping[str, Any]) -> Trial:
        """Reads a trial from its run directory.

        Args:
            run: Run directory of the trial.
            values: Settings that differ from the preset, by key.
        """
        history = run.metrics()
        status = run.status()
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


def rank_trials(trials: Sequence[Trial]) -> list[Trial]:
    """Ranks trials by score; ties by more epochs, then by name; failed trials last.

    Args:
        trials: Trials in any order.
    """

    def rank(trial: Trial) -> tuple[bool, float, int, str]:
        score = -1.0 if trial.score is None else trial.score
        return trial.state == "failed", -score, -trial.epochs, trial.run.path.name

    return sorted(trials, key=rank)


def find_best(trials: Sequence[Trial]) -> Trial | None:
    """Finds the best trial that has a score and did not fail; None if there is none.

    Args:
        trials: Trials in any order.
    """
    for trial in rank_trials(trials):
        if trial.score is not None and trial.state != "failed":
            return trial
    return None


def format_table(trials: Sequence[Trial], keys: Sequence[str]) -> str:
    """Formats trials as a text table, in their order.

    Args:
        trials: Trials, the best first.
        keys: Settings that have a column.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "trial", "accuracy", "epochs", *keys, ""):
        table.add_column(heading, no_wrap=True)
    for rank, trial in enumerate(trials, 1):
        values = [format_value(trial.values.get(key, "preset")) for key in keys]
        accuracy = percent(trial.score, 2)
        note = trial.note[:NOTE_LENGTH]
        table.add_row(str(rank), trial.run.path.name, accuracy, str(trial.epochs), *values, note)
    return render_table(table)


def format_value(value: Any) -> str:
    """Formats the value of a setting as in a configuration file."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_value(inner)}" for key, inner in value.items())
    text = str(value)  # compared as text, because 0.0 equals False
    return {"None": "none", "True": "true", "False": "false"}.get(text, text)


def write_leaderboard(
    out: Path, preset: str, trials: Sequence[Trial], space: Sequence[Dimension], images: int
) -> Path:
    """Writes the page, completely or not at all.

    Args:
        out: Directory of the search.
        preset: Preset whose settings were varied.
        trials: Trials, the best first.
        space: Settings that were varied.
        images: Number of validation images the trials were evaluated on.

    Returns:
        The path of the page.
    """
    best = find_best(trials)
    error = None
    ties = 0
    if best is not None and best.score is not None:
        error = standard_error(best.score, images)
        ties = _count_ties(trials, best.score, 2 * error)
    pages = {trial.run.path.name: trial.run.report / PAGE for trial in trials}
    values: dict[str, Any] = {
        "preset": preset,
        "trials": trials,
        "best": best,
        "error": error,
        "ties": ties,
        "images": images,
        "keys": [dimension.key for dimension in space],
        "curves": {trial.run.path.name: compute_sparkline(trial.accuracies) for trial in trials},
        "links": {
            name: quote(path.relative_to(out).as_posix()) for name, path in pages.items() if path.is_file()
        },
        "scatter_plots": [compute_scatter(dimension, trials) for dimension in space],
        "sparkline": SPARKLINE,
        "scatter_size": SCATTER_SIZE,
        "format_value": format_value,
        "seconds": sum(trial.seconds for trial in trials),
    }
    write_atomically(out / PAGE, render("leaderboard.html", load_scripts(plots=False), **values))
    return out / PAGE


def _count_ties(trials: Sequence[Trial], best_score: float, margin: float) -> int:
    """Counts the trials whose score is within a margin of the best, the best included."""
    scores = [trial.score for trial in trials if trial.score is not None]
    return sum(0 <= best_score - score <= margin for score in scores)


def compute_scatter(dimension: Dimension, trials: Sequence[Trial]) -> dict[str, Any]:
    """Computes a scatter plot of the accuracy over one setting, within `SCATTER_SIZE`.

    Args:
        dimension: Setting on the x axis.
        trials: Trials; those with a value of the setting and a score get a point.

    Returns:
        `key`; `x` and `y`, labels at both ends of each axis; `points`, each with name, x, y and label.
    """
    key = dimension.key
    scored = [
        (trial.run.path.name, trial.values[key], trial.score)
        for trial in trials
        if key in trial.values and trial.score is not None
    ]
    scores = [score for _, _, score in scored] or [0.0, 1.0]
    lowest = min(scores)
    highest = max(scores)
    width, height = SCATTER_SIZE
    points = []
    for name, value, score in scored:
        x = SCATTER_MARGIN + _place_on_axis(dimension, value) * (width - 2 * SCATTER_MARGIN)
        rise = (score - lowest) / ((highest - lowest) or 1.0)
        y = height - SCATTER_MARGIN - rise * (height - 2 * SCATTER_MARGIN)
        points.append((name, round(x, 1), round(y, 1), f"{format_value(value)}: {percent(score)}"))
    return {
        "key": key,
        "x": [format_value(dimension.values[0]), format_value(dimension.values[-1])],
        "y": [percent(lowest), percent(highest)],
        "points": points,
    }


def _place_on_axis(dimension: Dimension, value: Any) -> float:
    """Computes the position of a value between the ends of its axis, in [0, 1]."""
    if dimension.kind == "choice":
        return float(dimension.values.index(value)) / max(len(dimension.values) - 1, 1)
    low, high = map(float, dimension.values)
    if dimension.kind == "loguniform":
        return math.log(float(value) / low) / math.log(high / low)
    return (float(value) - low) / (high - low)
