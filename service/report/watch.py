"""Progress of report jobs: bars in a terminal, and one line per report."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from pipelines.text import escape_name
from service.progress_bar import can_animate, open_display
from service.report.batch import FAILED, RENDERED, BatchObserver, ReportOutcome
from service.report.lease import read_progress
from service.report.reported import ReportedRun

POLL_SECONDS = 0.5
MAX_BARS = 16  # largest number of runs with a separate bar


class ProgressBars(BatchObserver):
    """Prints the outcome of every report, with a bar over all runs and one over the sections of each.

    Args:
        console: Console the outcomes are printed to.
        progress: Display the bars belong to.
    """

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._remaining: dict[str, ReportedRun] = {}
        self._bars: dict[str, TaskID] = {}
        self._total = 0
        self._done = 0
        self._all_runs = progress.add_task("reports", total=None, visible=False)

    def on_start(self, runs: Sequence[ReportedRun], names: Sequence[str]) -> None:
        """Shows the bar over all runs."""
        self._remaining = dict(zip(names, runs, strict=True))
        self._total = len(runs)
        self._progress.update(self._all_runs, total=len(runs), visible=True)

    def on_outcome(self, outcome: ReportOutcome) -> None:
        """Prints the outcome of one run and removes its bar."""
        self._remaining.pop(outcome.name, None)
        self._done += 1
        self._progress.update(self._all_runs, completed=self._done)
        if outcome.name in self._bars:
            self._progress.remove_task(self._bars.pop(outcome.name))
        line = f"{self._done}/{max(self._total, self._done)} {outcome.name}: {outcome.state}"
        if outcome.state == RENDERED:
            line += f" in {outcome.seconds:.1f} s"
        if outcome.state == FAILED:
            line += f": {outcome.message}"
        self._console.print(escape_name(line, kept="\n"), markup=False)  # a failure has a traceback

    def refresh(self) -> None:
        """Reads the current section of each report from its lease, and updates the bars."""
        for name, run in list(self._remaining.items())[:MAX_BARS]:
            if run.lease_path is None:
                continue
            counts, _, section = read_progress(run.lease_path).partition(" ")
            done, _, total = counts.partition("/")
            if not done.isdigit() or name not in self._remaining:
                continue
            if name not in self._bars:
                self._bars[name] = self._progress.add_task(escape_name(name), total=int(total))
            description = escape_name(f"  {name}: {section}")
            self._progress.update(self._bars[name], completed=int(done), description=description)


@contextmanager
def show_batch_progress() -> Iterator[BatchObserver]:
    """Yields an observer that shows the progress of the job over all runs, for the length of a block."""
    console = Console(highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    is_done = threading.Event()
    with open_display(console, *columns) as progress:
        bars = ProgressBars(console, progress)
        thread = threading.Thread(target=_refresh_periodically, args=(bars, is_done), daemon=True)
        if can_animate(console):
            thread.start()
        try:
            yield bars
        finally:
            is_done.set()
            if can_animate(console):
                thread.join()


def _refresh_periodically(bars: ProgressBars, is_done: threading.Event) -> None:
    while not is_done.wait(POLL_SECONDS):
        bars.refresh()


@contextmanager
def show_report_progress() -> Iterator[Callable[[int, int, str], None]]:
    """Yields a function that shows the progress of one report as a bar; silent outside a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24))
    with open_display(Console(), *columns) as bar:
        task = bar.add_task("opening", total=None)

        def update(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=name)

        yield update
