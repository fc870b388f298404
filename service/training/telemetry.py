"""Telemetry of a run in training: Prometheus gauges, a TensorFlow profile, and a log of the rows."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.remote.metrics import StoreMetrics
from service.config import RunConfig
from service.runs import Run
from service.training.meter import ProgressListener

GAUGES = {
    "images_per_second": "Images trained per second, over the epoch so far.",
    "input_wait": "Share of the time spent waiting for input, over the epoch so far.",
    "step_seconds": "Seconds for one global batch, over the last call.",
    "loss": "Mean training loss of the epoch so far, on worker 0.",
    "accuracy": "Training accuracy of the epoch so far, on worker 0.",
    "val_loss": "Validation loss of the newest epoch that was evaluated.",
    "val_accuracy": "Validation accuracy of the newest epoch that was evaluated.",
    "skipped_updates": "Updates skipped by this process because their gradient was not finite.",
    "checkpoint_age_seconds": "Seconds since the last checkpoint.",
    "restarts": "How often the workers were restarted.",
    "epoch": "The epoch in progress.",
    "store_fetched_bytes": "Bytes that the host of worker 0 has fetched from the store.",
    "store_hit_rate": "Share of the bytes used that did not have to be fetched from the store again.",
    "store_wait_seconds": "Seconds that threads of worker 0 have waited for the store.",
}
VALIDATION_SCORES = ("val_loss", "val_accuracy")
PROFILE_UPDATES = range(10, 20)  # earlier updates trace the graph and adapt the length of a call
ROWS_LOG = "GLASSBOX_ROWS_LOG"


def create_gauges(config: RunConfig, run: Run) -> Sequence[ProgressListener]:
    """Creates the gauges that Ray exports to Prometheus; returns their listener, or none without Ray."""
    if "ray" not in sys.modules:
        return ()
    import ray

    if not ray.is_initialized():
        return ()
    from ray.util.metrics import Gauge

    tags = {"run": run.path.name, "preset": config.preset}
    gauges = {name: Gauge(f"glassbox_{name}", text, tag_keys=tuple(tags)) for name, text in GAUGES.items()}

    def update(progress: dict[str, Any]) -> None:
        for name, gauge in gauges.items():
            if name in progress:
                gauge.set(float(progress[name]), tags)

    return (update,)


def describe_store(metrics: StoreMetrics | None) -> dict[str, float]:
    """Returns what was read from a store as values of the progress and the status; none for local data."""
    if metrics is None:
        return {}
    return {
        "store_fetched_bytes": float(metrics.fetched_bytes),
        "store_hit_rate": metrics.hit_rate,
        "store_wait_seconds": metrics.wait_seconds,
    }


def describe_validation(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the validation scores of the newest evaluated epoch as values of the progress.

    Args:
        history: Metrics of every finished epoch, oldest first.
    """
    for metrics in reversed(history):
        if "val_loss" in metrics:
            return {name: metrics[name] for name in VALIDATION_SCORES if name in metrics}
    return {}


def is_logging_rows() -> bool:
    """Tells whether the environment variable `GLASSBOX_ROWS_LOG` enables the log of rows."""
    return bool(os.environ.get(ROWS_LOG))


def align_to_profile(update: int, updates: int) -> int:
    """Shortens a call so that the profiled updates form a separate call.

    Args:
        update: First update of the call.
        updates: Number of updates that the call would run.

    Returns:
        Number of updates to run.
    """
    if update < PROFILE_UPDATES.start:
        return min(updates, PROFILE_UPDATES.start - update)
    if update < PROFILE_UPDATES.stop:
        return PROFILE_UPDATES.stop - update
    return updates


@contextmanager
def profile_once(run: Run, is_enabled: bool, update: int) -> Iterator[None]:
    """Takes a TensorFlow profile of the first block after the warmup; one profile per run.

    Args:
        run: Run directory that receives the profile.
        is_enabled: Whether this worker takes profiles.
        update: First update of the block.
    """
    if not is_enabled or update < PROFILE_UPDATES.start or run.profile.exists():
        yield
        return
    tf.profiler.experimental.start(str(run.profile))
    try:
        yield
    finally:
        tf.profiler.experimental.stop()


class RowLog:
    """Logs the rows that a worker has trained on: a line `epoch step row row ...` for every batch.

    The rows are those that the compiled step read, and are written after each call. A worker that is killed
    has therefore logged every step that any checkpoint includes. Steps after its last line are repeated from
    a checkpoint.

    Args:
        run: Run directory that receives the log.
        rank: Rank of the worker.
    """

    def __init__(self, run: Run, rank: int) -> None:
        self._run = run
        self._rank = rank

    @classmethod
    def from_environment(cls, run: Run, rank: int) -> RowLog | None:
        """Returns a log if the environment enables it, see `is_logging_rows`."""
        return cls(run, rank) if is_logging_rows() else None

    def write(self, epoch: int, step: int, rows: Sequence[np.ndarray]) -> None:
        """Appends the rows of consecutive batches.

        Args:
            epoch: Epoch of the batches.
            step: Step of the first batch.
            rows: int64 `[B]` for each batch.
        """
        lines = []
        for batch_step, batch_rows in enumerate(rows, step):
            lines.append(" ".join(map(str, (epoch, batch_step, *batch_rows.tolist()))))
        self._run.append_rows(self._rank, lines)
