"""Moving average of the weights, often more accurate than the weights (Polyak and Juditsky, 1992)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf


def ema_decay(updates: tf.Tensor, decay: float) -> tf.Tensor:
    """Returns the decay of the average for an update, with a warmup.

    Args:
        updates: Number of updates n of the weights so far; integer scalar.
        decay: The decay in the long run.

    Returns:
        min((1 + n) / (10 + n), decay), float32 scalar.
    """
    updates = tf.cast(updates, tf.float32)
    return tf.minimum((1 + updates) / (10 + updates), decay)


class WeightAverage:
    """An exponential moving average of weights. Build it inside the strategy's scope.

    Args:
        strategy: Strategy of the training.
        weights: Variables to average; the average starts at their current values.
        decay: Decay per update in the long run, in (0, 1). Early updates use a smaller one (`ema_decay`),
            or the untrained first weights would dominate the average of a short training.
    """

    def __init__(self, strategy: tf.distribute.Strategy, weights: list[keras.Variable], decay: float) -> None:
        self._strategy = strategy
        self._weights = [v.value for v in weights]
        self._decay = decay
        self.variables = [
            tf.Variable(
                tf.convert_to_tensor(weight),
                trainable=False,
                # Each replica updates its own copy, without communication.
                aggregation=tf.VariableAggregation.NONE,
            )
            for weight in self._weights
        ]

    def update(self, updates: tf.Tensor) -> None:
        """Moves the average towards the current weights. Call it on every replica.

        Args:
            updates: Number of updates of the weights since the average started, the last one included;
                int64 scalar.
        """
        share = 1 - ema_decay(updates, self._decay)
        for average, weight in zip(self.variables, self._weights, strict=True):
            average.assign_sub(share * (average - weight))

    def restart(self) -> None:
        """Starts the average again at the current weights."""
        self._copy(self._weights, self.variables)

    @contextmanager
    def swap_in(self) -> Iterator[None]:
        """Replaces the weights by their average for the length of a block."""
        weights = [tf.identity(value) for value in self._read(self._weights)]
        self._copy(self.variables, self._weights)
        try:
            yield
        finally:
            for variable, value in zip(self._weights, weights, strict=True):
                variable.assign(value)

    def _copy(self, source: list[tf.Variable], target: list[tf.Variable]) -> None:
        for value, variable in zip(self._read(source), target, strict=True):
            variable.assign(value)

    def _read(self, variables: list[tf.Variable]) -> list[tf.Tensor]:
        """Reads the values on the first replica of this worker, which equal those on all replicas."""
        return [tf.convert_to_tensor(self._strategy.experimental_local_results(v)[0]) for v in variables]
