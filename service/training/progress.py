"""Progress of a run: measured in the worker, kept in `status.json`, shown by the driver."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from service.runs import Run

T = TypeVar("T")
PUBLISH_SECONDS = 1.0
POLL_SECONDS = 0.5


class Meter:
    """Counts what an epoch processes and how long it waits for input. Lives in the worker.

    Args:
        run: Where the progress is published, at most once a second.
        epochs: Epochs of the whole run.
        rows: Examples per epoch.
        global_batch: Images per step.
    """

    def __init__(self, run: Run, epochs: int, rows: int, global_batch: int) -> None:
        self._run, self._epochs, self._rows, self._global_batch = run, epochs, rows, global_batch
        self._published = 0.0
        self._epoch, self._began, self._waited = 0, 0.0, 0.0

    def epoch(self, epoch: int, batches: Iterable[T]) -> Iterator[T]:
        """Passes an epoch's batches through, timing the wait for each."""
        self._epoch, self._began, self._waited = epoch, time.perf_counter(), 0.0
        iterator, images = iter(batches), 0
        while True:
            asked = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - asked
            yield batch
            images = min(images + self._global_batch, self._rows)
            self._publish(images)

    def figures(self) -> dict[str, float]:
        """Seconds, images per second and share of the time spent waiting, of the epoch that just ended."""
        seconds = time.perf_counter() - self._began
        return {"seconds": seconds, "images_per_second": self._rows / seconds, "input_wait": self._waited / seconds}

    def _publish(self, images: int) -> None:
        now = time.perf_counter()
        if now - self._published < PUBLISH_SECONDS:
            return
        self._published, seconds = now, now - self._began
        progress = {
            "epoch": self._epoch,
            "epochs": self._epochs,
            "images": images,
            "rows": self._rows,
            "images_per_second": images / seconds,
            "input_wait": self._waited / seconds,
        }
        with suppress(OSError):  # a full disk stops the checkpoint, with a reason; not the bar
            self._run.update_status(progress=progress)


def epoch_line(metrics: dict[str, float], epochs: int) -> str:
    """One epoch in one line of text."""
    scores = [f"{key} {metrics[key]:.4f}" for key in ("loss", "accuracy", "val_loss", "val_accuracy") if key in metrics]
    speed = f"{metrics['images_per_second']:.0f} images/s  input wait {metrics['input_wait']:.0%}  {metrics['seconds']:.1f} s"
    return "  ".join([f"epoch {metrics['epoch']:.0f}/{epochs}", *scores, speed])


@contextmanager
def shown(run: Run, epochs: int) -> Iterator[None]:
    """Shows a run's progress while the block trains: a bar in a terminal, plain lines elsewhere."""
    done = threading.Event()
    thread = threading.Thread(target=_show, args=(run, epochs, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show(run: Run, epochs: int, done: threading.Event) -> None:
    console = Console(highlight=False, soft_wrap=True)
    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn()]
    printed = len(run.metrics())
    if not console.is_terminal:
        console.print(f"starting {run.path.name}: {epochs} epochs; Ray and TensorFlow take a while to come up")
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("starting", total=None, speed="")
        told = False
        while True:
            last = done.wait(POLL_SECONDS)  # looked at before reading, so that the last epoch is never missed
            if not told and (caches := run.status().get("caches")):
                console.print(*(f"{split}: {tier}" for split, tier in caches.items()), sep="\n")
                told = True
            for metrics in run.metrics()[printed:]:
                console.print(epoch_line(metrics, epochs))
                printed += 1
            _update(bar, task, run.status().get("progress"))
            if last:
                return


def _update(bar: Progress, task: Any, progress: dict[str, Any] | None) -> None:
    if progress:
        done = (progress["epoch"] - 1) * progress["rows"] + progress["images"]
        speed = f"{progress['images_per_second']:.0f} images/s, {progress['input_wait']:.0%} waiting for input"
        description = f"epoch {progress['epoch']}/{progress['epochs']}"
        bar.update(task, completed=done, total=progress["epochs"] * progress["rows"], description=description, speed=speed)
