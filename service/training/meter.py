"""What a run measures of itself, in the worker: progress, speed, and where the time goes."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import tensorflow as tf

from service.runs import Run

PUBLISH_SECONDS = 1.0
Watcher = Callable[[dict[str, Any]], None]


class Clock:
    """Seconds by what they were spent on.

    Attributes:
        seconds: So far, by name.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the length of a block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def add(self, name: str, seconds: float) -> None:
        """Adds some seconds."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


class Meter:
    """Counts what an epoch processes and how long it waits for input.

    Args:
        run: Its status gets the progress, at most once a second.
        epochs: Of the whole run.
        rows: Examples per epoch.
        watchers: Who else is shown the progress.
    """

    def __init__(self, run: Run, epochs: int, rows: int, watchers: Sequence[Watcher] = ()) -> None:
        self._run, self._epochs, self._rows, self._watchers = run, epochs, rows, watchers
        self._published = 0.0
        self._epoch, self._images, self._waited, self._began = 0, 0, 0.0, 0.0

    def start(self, epoch: int, images: int = 0, seconds: float = 0.0) -> None:
        """Begins an epoch, or takes it up where so many images took so long."""
        self._epoch, self._images, self._waited = epoch, images, 0.0
        self._began = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        """Since the epoch began."""
        return time.perf_counter() - self._began

    def add(self, images: int, waited: float) -> None:
        """Counts some images, of which `waited` seconds were spent waiting for input."""
        self._images, self._waited = min(self._images + images, self._rows), self._waited + waited

    def figures(self) -> dict[str, float]:
        """Seconds, images per second and share of the time spent waiting, of the epoch so far."""
        seconds = self.seconds
        return {
            "seconds": seconds,
            "images_per_second": self._images / seconds,
            "input_wait": self._waited / seconds,
        }

    def publish(self, totals: Callable[[], tuple[float, ...]], **more: float) -> None:
        """Shows the progress, if it is time to.

        Args:
            totals: Asked for the sums of the epoch so far (see `Steps.local_totals`).
            more: Further figures.
        """
        now = time.perf_counter()
        if now - self._published < PUBLISH_SECONDS:
            return
        self._published = now
        loss, hits, _, weight = totals()
        progress = {
            "epoch": self._epoch,
            "epochs": self._epochs,
            "images": self._images,
            "rows": self._rows,
        } | self.figures()
        if weight:
            progress |= {"loss": loss / weight, "accuracy": hits / weight}
        progress |= {"memory_bytes": float(_memory()), **more}
        with suppress(OSError):  # a full disk stops the checkpoint, with a reason; not the bar
            self._run.update_status(progress=progress)
        for watcher in self._watchers:
            watcher(progress)


def _memory() -> int:
    """Bytes in use: of the first GPU where there is one, else the most RAM that this process has taken."""
    if tf.config.list_physical_devices("GPU"):
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
