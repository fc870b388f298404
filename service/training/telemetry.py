"""What others see of a run while it trains: Prometheus gauges, a TensorFlow profile, a log of the rows for tests."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from service.config import RunConfig
from service.runs import Run
from service.training.meter import Watcher

GAUGES = {
    "images_per_second": "Images trained per second, over the epoch so far.",
    "input_wait": "Share of the time spent waiting for input, over the epoch so far.",
    "step_seconds": "Seconds for one global batch, over the last call.",
    "loss": "Mean training loss of the epoch so far, on worker 0.",
    "checkpoint_age_seconds": "Seconds since the last checkpoint.",
    "restarts": "How often the workers were started again.",
    "epoch": "The epoch in progress.",
}
PROFILED = range(10, 20)  # updates; those before are spent on tracing and on finding the pace
ROWS_LOG = "GLASSBOX_ROWS_LOG"


def watchers(config: RunConfig, run: Run) -> Sequence[Watcher]:
    """What is shown the progress of a run: the gauges that Ray exports to Prometheus, where this is a worker of Ray's."""
    import ray

    if not ray.is_initialized():
        return ()
    from ray.util.metrics import Gauge

    tags = {"run": run.path.name, "preset": config.preset}
    gauges = {name: Gauge(f"glassbox_{name}", text, tag_keys=tuple(tags)) for name, text in GAUGES.items()}

    def show(progress: dict[str, Any]) -> None:
        for name, gauge in gauges.items():
            if name in progress:
                gauge.set(float(progress[name]), tags)

    return (show,)


def to_profile(update: int, updates: int) -> int:
    """How many updates to do from one on, so that those of `PROFILED` are one call, whatever the pace."""
    if update < PROFILED.start:
        return min(updates, PROFILED.start - update)
    return PROFILED.stop - update if update < PROFILED.stop else updates


@contextmanager
def profiled(run: Run, wanted: bool, update: int) -> Iterator[None]:
    """Takes a TensorFlow profile of the first block that begins when a run has warmed up; one a run."""
    folder = run.events / "profile"
    if not wanted or update < PROFILED.start or folder.exists():
        yield
        return
    tf.profiler.experimental.start(str(folder))
    try:
        yield
    finally:
        tf.profiler.experimental.stop()


class RowLog:
    """A line for every batch of a worker, `epoch step row row ...`: proves that no row is lost or doubled. For tests.

    Args:
        run: Where to.
        rank: Of the worker.
    """

    def __init__(self, run: Run, rank: int) -> None:
        self._path = run.path / f"rows-{rank}.log"

    @classmethod
    def wanted(cls, run: Run, rank: int) -> RowLog | None:
        """A log where the environment asks for one; the batches then go through Python one by one."""
        return cls(run, rank) if os.environ.get(ROWS_LOG) else None

    def write(self, epoch: int, step: int, rows: Sequence[np.ndarray]) -> None:
        """Adds the rows of some batches from a step on."""
        with self._path.open("a") as file:
            for n, batch in enumerate(rows):
                print(epoch, step + n, *batch.tolist(), file=file)
