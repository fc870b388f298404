"""One pass of a worker over a split: which steps it reads, and which shards it needs next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.input.mix import AnyReader, list_draws, list_set_rows
from pipelines.input.order import EpochOrder, OrderSpec
from pipelines.input.windows import Rows
from pipelines.spec import DataSpec

FILL_BATCH = 64  # images decoded at a time while they are cached in memory


def build_order(reader: AnyReader, data: DataSpec, global_batch: int, seed: int | None) -> OrderSpec:
    """Returns what the order of a split depends on.

    Args:
        reader: Reader of the split.
        data: Window, lanes and repeats.
        global_batch: Examples per step over all workers.
        seed: Seed of the shuffling; None keeps the stored order.

    Raises:
        ConfigError: The seed or the window is out of range, or the lanes do not divide batch or window.
    """
    lanes = data.lanes
    if seed is None and global_batch % lanes:
        lanes = 1  # rows in stored order may be read in batches of any size
    window = None if seed is None else data.window
    set_rows = list_set_rows(reader)
    return OrderSpec(set_rows, global_batch, seed, window, lanes, list_draws(reader), data.repeats)


def build_fill_order(reader: AnyReader) -> OrderSpec:
    """Returns the order in which all images of a split are decoded into a cache: the stored one."""
    return OrderSpec(list_set_rows(reader), FILL_BATCH)


@dataclass(frozen=True)
class Pass:
    """The steps that a worker reads in some consecutive epochs.

    Iterating over it yields the shards that are read at the same time, window by window (see
    `EpochOrder.iterate_windows`), any number of times and in any thread.

    Attributes:
        order: What the order depends on.
        epoch: Number of the first epoch, from 0.
        epochs: Number of epochs in a row.
        start_step: First step of the first epoch.
        stop_step: Step before which every epoch ends.
        worker: Rank of the worker.
        workers: Number of workers that share every batch.
    """

    order: OrderSpec
    epoch: int
    epochs: int
    start_step: int
    stop_step: int
    worker: int = 0
    workers: int = 1

    def __iter__(self) -> Iterator[Rows]:
        for _, _, shards in self.iterate_windows():
            yield shards

    def iterate_steps(self) -> Iterator[tuple[int, range]]:
        """Yields the number and the steps of every epoch."""
        for epoch in range(self.epoch, self.epoch + self.epochs):
            yield epoch, range(self.start_step if epoch == self.epoch else 0, self.stop_step)

    def iterate_windows(self) -> Iterator[tuple[int, int, Rows]]:
        """Yields epoch and step in which every window begins, and its shards."""
        for epoch, steps in self.iterate_steps():
            windows = EpochOrder(self.order, epoch).iterate_windows(steps.start, self.worker, self.workers)
            for step, shards in windows:
                if step >= steps.stop:
                    break
                yield epoch, step, shards


class PassReader:
    """Reads the steps of a pass in their order, and keeps the cache of a remote set informed.

    Args:
        reader: Reader of the split.
        steps: Steps that are read.

    Attributes:
        reader: Reader for the rows of this pass.
    """

    def __init__(self, reader: AnyReader, steps: Pass) -> None:
        self.reader = reader.plan(steps)
        self._windows = steps.iterate_windows()
        self._next = next(self._windows, None)
        self._window = -1

    def finish(self, epoch: int, step: int) -> None:
        """Announces that all rows of a step have been read."""
        window = self._window
        while self._next is not None and self._next[:2] <= (epoch, step):
            window += 1
            self._next = next(self._windows, None)
        if window != self._window:
            # Windows before this one end in its first step, at the latest.
            self.reader.advance(window)
            self._window = window

    def close(self) -> None:
        """Ends the pass: nothing more is fetched ahead."""
        self.reader.close()
