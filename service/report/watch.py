"""How the job over all runs shows how far it is: bars in a terminal, a line a report elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from service.report.batch import FAILED, MADE, Outcome, Watcher
from service.report.job import lease_path
from service.report.lease import words_at
from service.runs import Run

POLL_SECONDS = 0.5
MOST = 16  # runs in work whose parts are shown


class Bars(Watcher):
    """Says what became of every report, and shows a bar over runs and one over the parts of each that is in work.

    Args:
        console: Where to.
        progress: The bars.
    """

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console, self._progress = console, progress
        self._left: dict[str, Run] = {}
        self._bars: dict[str, TaskID] = {}
        self._total, self._done = 0, 0
        self._runs = progress.add_task("reports", total=None, visible=False)

    def begins(self, due: Sequence[Run], names: Sequence[str]) -> None:
        """Shows the bar over all runs."""
        self._left, self._total = dict(zip(names, due, strict=True)), len(due)
        self._progress.update(self._runs, total=len(due), visible=True)

    def ends(self, outcome: Outcome) -> None:
        """Says what became of one."""
        self._left.pop(outcome.name, None)
        self._done += 1
        self._progress.update(self._runs, completed=self._done)
        if outcome.name in self._bars:
            self._progress.remove_task(self._bars.pop(outcome.name))
        took = f" in {outcome.seconds:.1f} s" if outcome.state == MADE else ""
        words = f": {outcome.words}" if outcome.state == FAILED else ""
        self._console.print(
            f"{self._done}/{max(self._total, self._done)} {outcome.name}: {outcome.state}{took}{words}",
            markup=False,
        )

    def look(self) -> None:
        """Asks the claims of what is in work which part that is at."""
        for name, run in list(self._left.items())[:MOST]:
            counts, _, part = words_at(lease_path(run)).partition(" ")
            done, _, total = counts.partition("/")
            if not done.isdigit() or name not in self._left:
                continue
            if name not in self._bars:
                self._bars[name] = self._progress.add_task(name, total=int(total))
            self._progress.update(self._bars[name], completed=int(done), description=f"  {name}: {part}")


@contextmanager
def watching() -> Iterator[Watcher]:
    """A watcher that shows how far the job is, for the length of a block."""
    console = Console(highlight=False, soft_wrap=True)
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    ended = threading.Event()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bars = Bars(console, progress)
        thread = threading.Thread(target=_look, args=(bars, ended), daemon=True)
        if console.is_terminal:
            thread.start()
        try:
            yield bars
        finally:
            ended.set()
            if console.is_terminal:
                thread.join()


def _look(bars: Bars, ended: threading.Event) -> None:
    while not ended.wait(POLL_SECONDS):
        bars.look()


@contextmanager
def steps() -> Iterator[Callable[[int, int, str], None]]:
    """A bar over the parts of one report, for the length of a block; nothing outside a terminal."""
    console = Console()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as bar:
        task = bar.add_task("opening", total=None)

        def tell(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=name)

        yield tell
