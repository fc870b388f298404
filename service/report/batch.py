"""Reports of all runs below a directory: what is missing is made, each as a task of its own, and the page over them is renewed."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.cluster import connected, run_tasks
from pipelines.errors import ConfigError, GlassboxError
from service.report.fingerprint import fingerprint, is_up_to_date, shards_of
from service.report.job import Form, parameters
from service.report.lease import LeaseHeldError
from service.report.options import ReportOptions
from service.report.pages.index import write_index
from service.runs import Run

MADE, UP_TO_DATE, NOT_FINISHED, ELSEWHERE, FAILED = (
    "made",
    "up to date",
    "not finished",
    "in work elsewhere",
    "failed",
)
INDEX = "index.html"


@dataclass(frozen=True)
class Outcome:
    """What became of the report of one run.

    Attributes:
        name: Of the run, relative to the directory of all.
        state: One of the five above.
        words: What is wrong, where something is.
        seconds: How long it took.
    """

    name: str
    state: str
    words: str = ""
    seconds: float = 0.0


class Watcher:
    """Is told how far the job is; this one says nothing."""

    def begins(self, due: Sequence[Run], names: Sequence[str]) -> None:
        """These runs get new reports, in this order."""

    def ends(self, outcome: Outcome) -> None:
        """One of them is done."""


def report_all(
    root: Path,
    options: ReportOptions | None = None,
    single_file: bool = False,
    watcher: Watcher | None = None,
) -> list[Outcome]:
    """Makes the reports that are missing or out of date, and the page over all runs.

    Starts that overlap share the work: a run whose report another makes is left to that one.

    Args:
        root: Holds run directories, at any depth.
        options: What reports show.
        single_file: Put pictures into the pages.
        watcher: Is told how far it is.

    Returns:
        An outcome for every run, sorted by name; and one named `index.html`, if that could not be written.

    Raises:
        ConfigError: There is no such directory, or no Ray cluster.
    """
    if not root.is_dir():
        raise ConfigError(
            "a directory that holds runs",
            f"all={root} (no such directory)",
            "name the directory above the runs",
        )
    options, watcher = options or ReportOptions(), watcher or Watcher()
    runs = {str(run.path.relative_to(root)): run for run in find_runs(root)}
    states = {name: _state(run, parameters(options, Form(single_file))) for name, run in runs.items()}
    outcomes = {name: Outcome(name, state) for name, state in states.items() if state}
    due = [name for name, state in states.items() if not state]
    watcher.begins([runs[name] for name in due], due)
    for outcome in _made([(name, runs[name], root) for name in due], options, single_file):
        outcomes[outcome.name] = outcome
        watcher.ends(outcome)
    try:
        write_index(
            root,
            runs,
            {outcome.name: outcome.words for outcome in outcomes.values() if outcome.state == FAILED},
        )
    except ConfigError as error:
        outcomes[INDEX] = Outcome(INDEX, FAILED, str(error))
        watcher.ends(outcomes[INDEX])
    return [outcomes[name] for name in sorted(outcomes)]


def find_runs(root: Path) -> Iterator[Run]:
    """Run directories below a directory, sorted; hidden directories and what lies inside a run are passed over."""
    for folder, inner, files in os.walk(root):
        if "config.yaml" in files:
            inner.clear()
            yield Run(folder)
        inner[:] = sorted(name for name in inner if not name.startswith("."))


def summary_line(outcomes: Sequence[Outcome]) -> str:
    """The whole job in one line."""
    counts = {
        state: sum(outcome.state == state for outcome in outcomes)
        for state in (MADE, UP_TO_DATE, NOT_FINISHED, ELSEWHERE, FAILED)
    }
    words = ", ".join(f"{count} {state}" for state, count in counts.items() if count or state != ELSEWHERE)
    failed = [outcome.name for outcome in outcomes if outcome.state == FAILED]
    return f"reports: {words}" + (f": {', '.join(failed)}" if failed else "")


def _state(run: Run, asked: dict[str, Any]) -> str:
    """What is clear without making anything; empty where a report is due."""
    if run.status().get("state") != "finished":
        return NOT_FINISHED
    with suppress(GlassboxError, OSError):  # whatever is wrong with it, making its report will say so
        if is_up_to_date(run, fingerprint(run, shards_of(run), asked)):
            return UP_TO_DATE
    return ""


def _made(
    due: Sequence[tuple[str, Run, Path]], options: ReportOptions, single_file: bool
) -> Iterator[Outcome]:
    """Makes reports as tasks; one that kills its worker is a failure of its own, and those it took with it begin again."""
    left = list(due)
    if not left:
        return
    with connected():
        while left:
            calls, begun = [(str(run.path), str(root), options, single_file) for _, run, root in left], [0]
            done: set[int] = set()
            try:
                with closing(run_tasks(_task, calls, _noting(begun, left))) as tasks:
                    for place, (state, words, seconds) in tasks:
                        done.add(place)
                        yield Outcome(left[place][0], state, words, seconds)
            except ConfigError as error:  # the worker of the place that was named last died
                done.add(begun[-1])
                yield Outcome(left[begun[-1]][0], FAILED, str(error))
            left = [entry for place, entry in enumerate(left) if place not in done]


def _noting(begun: list[int], left: Sequence[tuple[str, Run, Path]]) -> Callable[[int], str]:
    def name(place: int) -> str:
        begun.append(place)
        return left[place][0]

    return name


def _task(path: str, root: str, options: ReportOptions, single_file: bool) -> tuple[str, str, float]:
    """Makes one report in a worker process: its state, what is wrong, and how long it took."""
    from service.report.job import render_report

    began, run = time.perf_counter(), Run(path)
    _share_gpus()
    form = Form(single_file, os.path.relpath(Path(root) / INDEX, run.report))
    try:
        if _state(run, parameters(options, form)) == UP_TO_DATE:  # by another job, since this one looked
            return UP_TO_DATE, "", 0.0
        render_report(run, options=options, form=form)
    except LeaseHeldError as error:
        return ELSEWHERE, str(error), 0.0
    except GlassboxError as error:
        return FAILED, str(error), 0.0
    except Exception as error:  # noqa: BLE001 (Keras raises no narrower one where a download fails)
        return FAILED, f"{type(error).__name__}: {error}\n{traceback.format_exc()}", 0.0
    return MADE, "", time.perf_counter() - began


def _share_gpus() -> None:
    """Lets several tasks use one GPU: TensorFlow takes all of its memory otherwise."""
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        with suppress(RuntimeError):  # this worker has used it before
            tf.config.experimental.set_memory_growth(gpu, True)
