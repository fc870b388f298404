"""Controls the training loop of all workers from worker 0: updates per call, and when to save or stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from service.runs import Run
from service.training.strategy import WorkerContext, sum_over_workers

CALL_SECONDS = 0.25  # target duration of a call, short enough for stop requests and the progress bar
MAX_UPDATES = 64  # largest number of updates per call; more would not reduce the overhead noticeably
STOP_CHECK_SECONDS = 1.0  # interval between checks for a stop request, which may be on a slow disk


@dataclass(frozen=True)
class Command:
    """Next action of all workers.

    Attributes:
        updates: Number of updates before the next command.
        save: Whether to write a checkpoint before them.
        stop: Whether to stop instead.
    """

    updates: int = 1
    save: bool = False
    stop: bool = False


class LoopController:
    """Sends the same commands to all workers.

    Args:
        run: Run directory in which stop requests are stored.
        worker: Rank and group of this worker.
        strategy: Strategy of the training, which carries the commands.
        steps_per_call: Updates in one call; None adapts them to `CALL_SECONDS`.
        checkpoint_minutes: Minutes between checkpoints within an epoch; None for none.
        clock: Monotonic clock in seconds.
    """

    def __init__(
        self,
        run: Run,
        worker: WorkerContext,
        strategy: tf.distribute.Strategy,
        steps_per_call: int | None = None,
        checkpoint_minutes: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._worker = worker
        self._strategy = strategy
        self._steps_per_call = steps_per_call
        self._checkpoint_seconds = checkpoint_minutes * 60 if checkpoint_minutes else float("inf")
        self._clock = clock
        self._saved_at = clock()
        self._checked_at = self._saved_at
        self._updates = steps_per_call or 1
        self._should_stop = False

    def mark_saved(self) -> None:
        """Restarts the time to the next checkpoint."""
        self._saved_at = self._clock()

    @property
    def checkpoint_age(self) -> float:
        """Seconds since the last checkpoint."""
        return self._clock() - self._saved_at

    def next_command(self, updates: int = 0, seconds: float = 0.0) -> Command:
        """Returns the next command. A collective: every worker must call it at the same points.

        Args:
            updates: Number of updates of the last call; 0 before the first.
            seconds: Duration of the last call.
        """
        command = self._decide(updates, seconds) if self._worker.is_chief else Command(0)
        if self._worker.world_size == 1:
            return command
        # The others send zeros.
        numbers = tf.constant([command.updates, command.save, command.stop], tf.float32)
        count, save, stop = self._sum(numbers).numpy()
        return Command(int(count), bool(save), bool(stop))

    def _decide(self, updates: int, seconds: float) -> Command:
        if updates and seconds and not self._steps_per_call:
            fitting = updates / seconds * CALL_SECONDS
            self._updates = int(min(max(fitting, 1), MAX_UPDATES, 4 * self._updates))
        now = self._clock()
        if now - self._checked_at >= STOP_CHECK_SECONDS:
            self._checked_at = now
            self._should_stop = self._run.stop_requested() is not None
        is_due = now - self._saved_at >= self._checkpoint_seconds
        return Command(self._updates, self._should_stop or is_due, self._should_stop)

    @tf.function(autograph=False)
    def _sum(self, numbers: tf.Tensor) -> tf.Tensor:
        return sum_over_workers(self._strategy, self._worker, numbers)
