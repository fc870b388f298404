"""The moving average of the weights, which often does better than the weights themselves (Polyak and Juditsky, 1992)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf


def kept(made: tf.Tensor, decay: float) -> tf.Tensor:
    """Share of the average that an update keeps: (1 + n) / (10 + n) after n updates, and never more than `decay`; float32 scalar."""
    made = tf.cast(made, tf.float32)
    return tf.minimum((1 + made) / (10 + made), decay)


class WeightAverage:
    """An exponential moving average of weights, started at their first values. Build it inside the strategy's scope.

    Args:
        strategy: Of the training.
        weights: What is averaged.
        decay: Share of the average that an update keeps in the long run, in (0, 1). Early ones keep less, `kept`, or the first
            weights, of which nothing is known yet, would stay in the average of a short training.
    """

    def __init__(self, strategy: tf.distribute.Strategy, weights: list[keras.Variable], decay: float) -> None:
        self._strategy, self._weights, self._decay = strategy, [v.value for v in weights], decay
        self.variables = [
            tf.Variable(
                tf.convert_to_tensor(w),
                trainable=False,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            for w in self._weights
        ]

    def update(self, made: tf.Tensor) -> None:
        """Takes the weights as they are now into the average. Outside of the replicas, in a graph or not.

        Args:
            made: Number of updates of the weights since the average began, with the last one; int64 scalar.
        """
        taken = 1 - kept(made, self._decay)
        for average, weight in zip(self.variables, self._weights, strict=True):
            self._strategy.extended.update(
                average, lambda a, w: a.assign_sub(taken * (a - w)), args=(weight,)
            )

    def restart(self) -> None:
        """Begins again at the weights as they are now."""
        self._copy(self._weights, self.variables)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the average in the place of the weights for the length of a block."""
        weights = [tf.identity(w) for w in self._local(self._weights)]
        self._copy(self.variables, self._weights)
        try:
            yield
        finally:
            for variable, value in zip(self._weights, weights, strict=True):
                variable.assign(value)

    def _copy(self, source: list[tf.Variable], target: list[tf.Variable]) -> None:
        for value, variable in zip(self._local(source), target, strict=True):
            variable.assign(value)

    def _local(self, variables: list[tf.Variable]) -> list[tf.Tensor]:
        return [tf.convert_to_tensor(self._strategy.experimental_local_results(v)[0]) for v in variables]
