"""Measures the training in a worker: progress, throughput, and time per phase."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import tensorflow as tf

from service.runs import Run

PUBLISH_SECONDS = 1.0  # interval between updates of the progress in the status
ProgressListener = Callable[[dict[str, Any]], None]


class PhaseTimer:
    """Adds up the seconds that a run spends in each of its phases.

    Attributes:
        seconds: Seconds so far, by the name of the phase.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Adds the duration of a block to a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(phase, time.perf_counter() - began)

    def add(self, phase: str, seconds: float) -> None:
        """Adds some seconds to a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds


class Meter:
    """Counts the images of an epoch and the time spent waiting for them.

    Args:
        run: Run directory whose status receives the progress, at most once a second.
        epochs: Number of epochs of the run.
        rows: Number of examples per epoch.
        listeners: Functions that receive the progress too.
    """

    def __init__(self, run: Run, epochs: int, rows: int, listeners: Sequence[ProgressListener] = ()) -> None:
        self._run = run
        self._epochs = epochs
        self._rows = rows
        self._listeners = listeners
        self._published_at = 0.0
        self._epoch = 0
        self._images = 0
        self._wait_seconds = 0.0
        self._began = 0.0

    def start(self, epoch: int, images: int = 0, seconds: float = 0.0) -> None:
        """Starts an epoch, or resumes it.

        Args:
            epoch: The epoch, from 1.
            images: Images of the epoch that are already done.
            seconds: Training time of these images.
        """
        self._epoch = epoch
        self._images = images
        self._wait_seconds = 0.0
        self._began = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        """Seconds since the epoch began."""
        return time.perf_counter() - self._began

    def add(self, images: int, wait_seconds: float) -> None:
        """Counts some images, and the seconds spent waiting for them."""
        self._images = min(self._images + images, self._rows)
        self._wait_seconds += wait_seconds

    def read(self) -> dict[str, float]:
        """Returns seconds, images per second and share of the time spent waiting, of the epoch so far."""
        seconds = self.seconds
        return {
            "seconds": seconds,
            "images_per_second": self._images / seconds,
            "input_wait": self._wait_seconds / seconds,
        }

    def publish(self, read_totals: Callable[[], tuple[float, ...]], **more: float) -> None:
        """Publishes the progress, at most once per `PUBLISH_SECONDS`.

        Args:
            read_totals: Returns the sums of the epoch so far (see `Steps.read_local_totals`).
            more: Further values to publish.
        """
        now = time.perf_counter()
        if now - self._published_at < PUBLISH_SECONDS:
            return
        self._published_at = now
        progress: dict[str, Any] = {
            "epoch": self._epoch,
            "epochs": self._epochs,
            "images": self._images,
            "rows": self._rows,
        }
        progress |= self.read()
        loss, hits, _, weight = read_totals()
        if weight:
            progress |= {"loss": loss / weight, "accuracy": hits / weight}
        progress |= {"memory_bytes": float(_measure_memory()), **more}
        with suppress(OSError):  # the next checkpoint reports a full disk
            self._run.update_status(progress=progress)
        for listener in self._listeners:
            listener(progress)


def _measure_memory() -> int:
    """Returns the peak memory in bytes: of the first GPU if there is one, else of this process."""
    if tf.config.list_logical_devices("GPU"):
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
