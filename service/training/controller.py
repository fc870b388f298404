"""How many updates the workers do before they look up again, and what they do then: worker 0 decides, once for all."""

from __future__ import annotations

import time
from dataclasses import dataclass

import tensorflow as tf

from service.runs import Run
from service.training.strategy import WorkerContext

BURST_SECONDS = (
    0.25  # that one call of the compiled updates shall take, so that orders and the progress bar keep up
)
LONGEST_BURST = 64  # updates in one call: beyond it there is no overhead left to save
LOOK_SECONDS = 1.0  # between looks for a stop request, which may lie on a distant disk


@dataclass(frozen=True)
class Command:
    """What all workers do next.

    Attributes:
        updates: How many, before the next orders.
        save: First write a checkpoint.
        stop: Then end.
    """

    updates: int = 1
    save: bool = False
    stop: bool = False


class LoopController:
    """Gives the orders.

    Args:
        run: Where a stop is asked for.
        place: Of this process among the workers.
        strategy: Of the training.
        steps_per_call: Updates in one call; None fits them to `BURST_SECONDS`.
        minutes: Between checkpoints within an epoch; None for none.
    """

    def __init__(
        self,
        run: Run,
        place: WorkerContext,
        strategy: tf.distribute.Strategy,
        steps_per_call: int | None = None,
        minutes: float | None = None,
    ) -> None:
        self._run, self._place, self._strategy, self._fixed = run, place, strategy, steps_per_call
        self._interval = minutes * 60 if minutes else float("inf")
        self._saved = self._looked = time.monotonic()
        self._updates, self._stop = steps_per_call or 1, False

    def saved(self) -> None:
        """Takes notice of a checkpoint."""
        self._saved = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the last checkpoint."""
        return time.monotonic() - self._saved

    def orders(self, updates: int = 0, seconds: float = 0.0) -> Command:
        """The next orders; every worker must ask at the same places.

        Args:
            updates: How many the last call did; 0 before the first.
            seconds: How long it took.
        """
        own = self._decided(updates, seconds) if self._place.writes else Command(0)
        if self._place.workers == 1:
            return own
        count, save, stop = self._told(
            tf.constant([own.updates, int(own.save), int(own.stop)], tf.int64)
        ).numpy()
        return Command(int(count), bool(save), bool(stop))

    def _decided(self, updates: int, seconds: float) -> Command:
        now = time.monotonic()
        if updates and seconds and not self._fixed:
            self._updates = int(
                min(max(updates / seconds * BURST_SECONDS, 1), LONGEST_BURST, 4 * self._updates)
            )
        if now - self._looked >= LOOK_SECONDS:
            self._looked, self._stop = now, self._run.stop_requested() is not None
        return Command(self._updates, self._stop or now - self._saved >= self._interval, self._stop)

    @tf.function
    def _told(self, numbers: tf.Tensor) -> tf.Tensor:
        """Worker 0's numbers; those of the others are zero."""

        def summed() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            own = numbers if context.replica_id_in_sync_group == 0 else tf.zeros_like(numbers)
            return context.all_reduce("sum", tf.identity(own))

        return self._strategy.experimental_local_results(self._strategy.run(summed))[0]
