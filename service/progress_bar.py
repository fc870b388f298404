"""Progress bars of all commands: shown in a terminal or a notebook, silent elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

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
    """Shows a progress bar for the length of a block, in a terminal or a notebook.

    Args:
        description: Text in front of the bar.

    Yields:
        A function that takes the number of images done and their total.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        _ThroughputColumn(),
        TimeRemainingColumn(),
    )
    with open_display(Console(stderr=True), *columns) as progress:
        task = progress.add_task(description, total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield update


def open_display(console: Console, *columns: ProgressColumn) -> Progress:
    """Opens a progress display for a block; it disappears at the end of the block.

    Args:
        console: Console to draw on.
        columns: Columns to show for every task.
    """
    return Progress(*columns, console=console, disable=not can_animate(console), transient=True)


def can_animate(console: Console) -> bool:
    """Tells whether a console can redraw itself: a terminal, or a notebook with ipywidgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
