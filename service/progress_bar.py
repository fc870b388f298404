"""A progress bar that counts images, for commands that process a known number of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Update = Callable[[int, int], None]


class _ThroughputColumn(ProgressColumn):
    """Images per second over the last seconds, or over the whole time at the end."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed or 0
        return Text(f"{speed:.0f} images/s")


@contextmanager
def progress_bar(description: str) -> Iterator[Update]:
    """Shows a progress bar for the length of a block, if standard error is a terminal.

    Args:
        description: Text in front of the bar.

    Yields:
        A function that takes the number of images done and their total.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        _ThroughputColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(description, total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield update
