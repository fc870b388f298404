"""Renders the missing and outdated reports of all runs below a directory, as Ray tasks."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines.cluster import choose_task_resources, list_nodes, ray_session, run_tasks
from pipelines.errors import ConfigError, GlassboxError
from service.failures import translate_failure
from service.report.fingerprint import compute_fingerprint, is_up_to_date
from service.report.lease import LeaseHeldError
from service.report.options import PageOptions, ReportOptions
from service.report.pages.index import write_index
from service.report.publish import PAGE
from service.report.subject import find_shards
from service.runs import Run, find_runs

RENDERED = "rendered"
UP_TO_DATE = "up to date"
NOT_FINISHED = "not finished"
ELSEWHERE = "in progress elsewhere"
FAILED = "failed"


@dataclass(frozen=True)
class ReportOutcome:
    """Outcome of the report of one run.

    Attributes:
        name: Name of the run, its path relative to the directory of all runs.
        state: One of the five states above.
        message: Error message; empty unless it failed.
        seconds: Time it took to render.
    """

    name: str
    state: str
    message: str = ""
    seconds: float = 0.0


class BatchObserver:
    """Receives the progress of the job over all runs; this one ignores it."""

    def on_start(self, runs: Sequence[Run], names: Sequence[str]) -> None:
        """Called with the runs whose reports will be rendered, and their names, in this order."""

    def on_outcome(self, outcome: ReportOutcome) -> None:
        """Called when the outcome of one of these runs is known."""


def report_all(
    root: Path,
    options: ReportOptions | None = None,
    single_file: bool = False,
    observer: BatchObserver | None = None,
) -> list[ReportOutcome]:
    """Renders the reports that are missing or out of date, and the index page of all runs.

    Overlapping jobs share the work: a run whose report another process renders is skipped.

    Args:
        root: Directory that holds run directories, at any depth.
        options: Content of the reports.
        single_file: Whether pictures are embedded in the pages.
        observer: Receives the progress of the job.

    Returns:
        An outcome for every run, sorted by name; and one named `index.html`, if that could not be written.

    Raises:
        ConfigError: The directory does not exist, or there is no Ray cluster.
    """
    if not root.is_dir():
        raise ConfigError(
            "a directory that holds runs",
            f"all={root} (no such directory)",
            "name the directory above the runs",
        )
    options = options or ReportOptions()
    observer = observer or BatchObserver()
    runs = {str(run.path.relative_to(root)): run for run in find_runs(root)}
    outcomes = {}
    due = {}
    for name, run in runs.items():
        state = _find_state(run, options, PageOptions(single_file))
        if state:
            outcomes[name] = ReportOutcome(name, state)
        else:
            due[name] = run
    observer.on_start(list(due.values()), list(due))
    for outcome in _render_all(due, root, options, single_file):
        outcomes[outcome.name] = outcome
        observer.on_outcome(outcome)
    failures = {outcome.name: outcome.message for outcome in outcomes.values() if outcome.state == FAILED}
    try:
        write_index(root, runs, failures)
    except ConfigError as error:
        outcomes[PAGE] = ReportOutcome(PAGE, FAILED, str(error))
        observer.on_outcome(outcomes[PAGE])
    return [outcomes[name] for name in sorted(outcomes)]


def format_summary(outcomes: Sequence[ReportOutcome]) -> str:
    """Formats the outcomes of the whole job as one line.

    Args:
        outcomes: Outcomes of all runs, see `report_all`.
    """
    counts = []
    for state in (RENDERED, UP_TO_DATE, NOT_FINISHED, ELSEWHERE, FAILED):
        count = sum(outcome.state == state for outcome in outcomes)
        if count or state != ELSEWHERE:
            counts.append(f"{count} {state}")
    line = f"reports: {', '.join(counts)}"
    failed = [outcome.name for outcome in outcomes if outcome.state == FAILED]
    return f"{line}: {', '.join(failed)}" if failed else line


def _find_state(run: Run, options: ReportOptions, page_options: PageOptions) -> str:
    """Returns the state of a run that needs no new report; empty if one is due."""
    if run.status().get("state") != "finished":
        return NOT_FINISHED
    with suppress(GlassboxError, OSError):  # rendering the report will raise the error again
        if is_up_to_date(run, compute_fingerprint(run, find_shards(run), options, page_options)):
            return UP_TO_DATE
    return ""


def _render_all(
    due: dict[str, Run], root: Path, options: ReportOptions, single_file: bool
) -> Iterator[ReportOutcome]:
    """Renders reports as tasks; if one kills its worker, it fails alone, and the others are restarted."""
    if not due:
        return
    remaining = dict(due)
    with ray_session():
        while remaining:
            for outcome in _render_until_worker_dies(dict(remaining), root, options, single_file):
                del remaining[outcome.name]
                yield outcome


def _render_until_worker_dies(
    due: dict[str, Run], root: Path, options: ReportOptions, single_file: bool
) -> Iterator[ReportOutcome]:
    """Renders reports as tasks; ends early, with a failure of its report, when a task kills its worker."""
    names = list(due)
    calls = [(str(due[name].path), str(root), options, single_file) for name in names]
    last = names[0]

    def name_task(index: int) -> str:
        # Called before the result of a task is read, so the last name is that of the task whose worker died.
        nonlocal last
        last = names[index]
        return last

    try:
        is_shared = bool(os.environ.get("RAY_ADDRESS"))
        resources = choose_task_resources(list_nodes(), len(calls), is_shared)
        with closing(run_tasks(_render_task, calls, name_task, resources=resources)) as tasks:
            for index, (state, message, seconds) in tasks:
                yield ReportOutcome(names[index], state, message, seconds)
    except ConfigError as error:
        yield ReportOutcome(last, FAILED, str(error))


def _render_task(path: str, root: str, options: ReportOptions, single_file: bool) -> tuple[str, str, float]:
    """Renders one report in a worker process; returns its state, error message, and seconds."""
    from service.devices import configure_devices
    from service.report.job import render_report

    start = time.perf_counter()
    run = Run(path)
    page_options = PageOptions(single_file, os.path.relpath(Path(root) / PAGE, run.report))
    try:
        configure_devices()
        if _find_state(run, options, page_options) == UP_TO_DATE:  # rendered by another job in the meantime
            return UP_TO_DATE, "", 0.0
        render_report(run, options=options, page_options=page_options)
    except LeaseHeldError as error:
        return ELSEWHERE, str(error), 0.0
    except GlassboxError as error:
        return FAILED, str(error), 0.0
    except Exception as error:  # noqa: BLE001 (one failed report must not end the job)
        cause = translate_failure(error)
        if isinstance(cause, GlassboxError):
            return FAILED, str(cause), 0.0
        return FAILED, f"{type(error).__name__}: {error}\n{traceback.format_exc()}", 0.0
    return RENDERED, "", time.perf_counter() - start
