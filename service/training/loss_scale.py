"""Loss scaling, which keeps small gradients from vanishing in float16 (Micikevicius et al., 2018)."""

from __future__ import annotations

import tensorflow as tf

INITIAL_SCALE = 2.0**15
MIN_SCALE = 1.0
GROWTH_INTERVAL = 2000.0  # finite updates in a row after which the scale doubles


class LossScale:
    """A factor on the loss that is halved when a gradient overflows and doubled after many finite gradients.

    It is the same on all replicas and workers, because it depends on the gradient after the sum. Build it
    inside the strategy's scope.
    """

    def __init__(self) -> None:
        # Each replica updates its own copy, without communication.
        aggregation = tf.VariableAggregation.NONE
        self._scale = tf.Variable(INITIAL_SCALE, trainable=False, aggregation=aggregation)
        self._finite_updates = tf.Variable(0.0, trainable=False, aggregation=aggregation)
        self.variables = [self._scale, self._finite_updates]

    def read(self) -> tf.Tensor:
        """Returns the current scale, float32 scalar."""
        return tf.convert_to_tensor(self._scale)

    def update(self, is_finite: tf.Tensor) -> tf.Tensor:
        """Adapts the scale to an update. Call it on every replica.

        Args:
            is_finite: Whether the gradient of the update was finite; bool scalar.

        Returns:
            Whether training can continue: an overflow is not a failure while a smaller scale may avoid it.
        """
        scale = self.read()
        finite_updates = tf.where(is_finite, tf.convert_to_tensor(self._finite_updates) + 1, 0.0)
        grows = finite_updates >= GROWTH_INTERVAL
        larger = tf.where(grows, 2 * scale, scale)
        smaller = tf.maximum(scale / 2, MIN_SCALE)
        self._scale.assign(tf.where(is_finite, larger, smaller))
        self._finite_updates.assign(tf.where(grows, 0.0, finite_updates))
        return is_finite | (scale > MIN_SCALE)
