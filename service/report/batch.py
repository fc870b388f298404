"""Renders the missing and outdated reports of all runs below a directory, as Ray tasks."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.cluster import choose_task_resources, list_nodes, ray_session, run_tasks
from pipelines.errors import ConfigError, GlassboxError
from pipelines.remote.errors import StoreError
from pipelines.remote.uri import Location, Uri
from service.failures import translate_failure
from service.report.fingerprint import compute_fingerprint, find_published_shards, is_up_to_date
from service.report.lease import LeaseHeldError
from service.report.options import PageOptions, ReportOptions
from service.report.pages.index import write_index
from service.report.publish import PAGE, summarize_manifest
from service.report.reported import ReportedRun, find_home_link, find_reported_runs

# Runs examined at a time: a store responds late, but threads that only compute wait for each other.
STORE_RUNS_AT_A_TIME = 16
LOCAL_RUNS_AT_A_TIME = 4
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

    def on_start(self, runs: Sequence[ReportedRun], names: Sequence[str]) -> None:
        """Called with the runs whose reports will be rendered, and their names, in this order."""

    def on_outcome(self, outcome: ReportOutcome) -> None:
        """Called when the outcome of one of these runs is known."""


def report_all(
    root: Location,
    options: ReportOptions | None = None,
    single_file: bool = False,
    observer: BatchObserver | None = None,
    out: Location | None = None,
) -> list[ReportOutcome]:
    """Renders the reports that are missing or out of date, and the index page of all runs.

    Overlapping jobs share the work: a run whose report another process renders is skipped. Of a run in a
    store that has not changed, only the versions of its objects and the summary of its report are read.

    Args:
        root: Directory that holds run directories, at any depth, or its URI.
        options: Content of the reports.
        single_file: Whether pictures are embedded in the pages.
        observer: Receives the progress of the job.
        out: Directory for the reports and the index page, or its URI; None to publish each report in its run.

    Returns:
        An outcome for every run, sorted by name; and one named `index.html`, if that could not be written.

    Raises:
        ConfigError: The directory does not exist, or there is no Ray cluster.
        StoreError: The bucket is missing, or the store denies access or does not respond.
    """
    if isinstance(root, Path) and not root.is_dir():
        raise ConfigError(
            "a directory that holds runs",
            f"all={root} (no such directory)",
            "name the directory above the runs",
        )
    options = options or ReportOptions()
    observer = observer or BatchObserver()
    runs = {run.name: run for run in find_reported_runs(root, out)}
    outcomes = {}
    due = {}
    published = {}
    for name, examined in examine_all(runs, options, PageOptions(single_file)):
        if examined.state:
            outcomes[name] = ReportOutcome(name, examined.state)
            published[name] = examined.published
        else:
            due[name] = runs[name]
    observer.on_start(list(due.values()), list(due))
    for outcome in _render_all(due, options, single_file):
        outcomes[outcome.name] = outcome
        observer.on_outcome(outcome)
    failures = {outcome.name: outcome.message for outcome in outcomes.values() if outcome.state == FAILED}
    try:
        finished = [name for name, outcome in outcomes.items() if outcome.state in (RENDERED, UP_TO_DATE)]
        # While reports were rendered here, another job may have replaced those that were up to date.
        recent = {} if due else published
        write_index(root if out is None else out, runs, failures, finished, recent)
    except (ConfigError, StoreError) as error:
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


@dataclass(frozen=True)
class Examined:
    """What is known about a run before anything is rendered.

    Attributes:
        state: State of a run that needs no new report; empty if one is due.
        published: Summary of its report, which the index shows; empty if it was not read.
    """

    state: str
    published: dict[str, Any] = field(default_factory=dict)


def examine_all(
    runs: Mapping[str, ReportedRun], options: ReportOptions, page_options: PageOptions
) -> list[tuple[str, Examined]]:
    """Finds out which reports are due.

    Args:
        runs: Runs by their names.
        options: Content of the reports.
        page_options: Format of the pages.

    Returns:
        Name of each run, and what was found, in the same order.
    """
    is_remote = any(isinstance(run.location, Uri) for run in runs.values())
    with ThreadPoolExecutor(STORE_RUNS_AT_A_TIME if is_remote else LOCAL_RUNS_AT_A_TIME) as threads:
        examined = threads.map(lambda run: _examine(run, options, page_options), runs.values())
        return list(zip(runs, examined, strict=True))


def _examine(reported: ReportedRun, options: ReportOptions, page_options: PageOptions) -> Examined:
    """Finds out whether a report is due, from its summary and what identifies its inputs."""
    is_remote = isinstance(reported.location, Uri)
    if not is_remote and reported.read_state() != "finished":
        return Examined(NOT_FINISHED)
    with suppress(GlassboxError, OSError, KeyError, TypeError):  # rendering the report will raise it again
        published = reported.read_published()
        shards, mix = find_published_shards(published)
        fingerprint = compute_fingerprint(reported, shards, options, page_options, mix)
        if is_up_to_date(reported, fingerprint, published):
            return Examined(UP_TO_DATE, summarize_manifest(published))
    # The status of a run in a store is read only if its report is not up to date.
    if is_remote and reported.read_state() != "finished":
        return Examined(NOT_FINISHED)
    return Examined("")


def _render_all(
    due: dict[str, ReportedRun], options: ReportOptions, single_file: bool
) -> Iterator[ReportOutcome]:
    """Renders reports as tasks; if one kills its worker, it fails alone, and the others are restarted."""
    if not due:
        return
    remaining = dict(due)
    with ray_session():
        while remaining:
            for outcome in _render_until_worker_dies(dict(remaining), options, single_file):
                del remaining[outcome.name]
                yield outcome


def _render_until_worker_dies(
    due: dict[str, ReportedRun], options: ReportOptions, single_file: bool
) -> Iterator[ReportOutcome]:
    """Renders reports as tasks; ends early, with a failure of its report, when a task kills its worker."""
    names = list(due)
    calls = [(due[name], options, single_file) for name in names]
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


def _render_task(reported: ReportedRun, options: ReportOptions, single_file: bool) -> tuple[str, str, float]:
    """Renders one report in a worker process; returns its state, error message, and seconds."""
    from service.devices import configure_devices
    from service.report.job import render_reported_run

    start = time.perf_counter()
    page_options = PageOptions(single_file, find_home_link(reported.name))
    try:
        configure_devices()
        if (
            _examine(reported, options, page_options).state == UP_TO_DATE
        ):  # rendered by another job in the meantime
            return UP_TO_DATE, "", 0.0
        render_reported_run(reported, options=options, page_options=page_options)
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
