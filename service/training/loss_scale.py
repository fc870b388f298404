"""Loss scaling, which keeps small gradients from vanishing in float16 (Micikevicius et al., 2018)."""

from __future__ import annotations

import tensorflow as tf

FIRST, LEAST, PATIENCE = (
    2.0**15,
    1.0,
    2000.0,
)  # the factor at first and at least; good updates after which it doubles


class LossScale:
    """A factor on the loss that halves where a gradient overflows, and doubles after many that did not.

    The same on all replicas and workers, because it looks at the gradient after the sum. Build it inside the strategy's scope.
    """

    def __init__(self) -> None:
        only = tf.VariableAggregation.ONLY_FIRST_REPLICA
        self._factor = tf.Variable(FIRST, trainable=False, aggregation=only)
        self._good = tf.Variable(0.0, trainable=False, aggregation=only)
        self.variables = [self._factor, self._good]

    def factor(self) -> tf.Tensor:
        """The factor now, float32 scalar."""
        return tf.convert_to_tensor(self._factor)

    def adapted(self, good: tf.Tensor) -> tf.Tensor:
        """Adapts the factor to an update that was `good` or not. Outside of the replicas.

        Returns:
            Whether all is well: an overflow is no failure as long as a smaller factor can mend it.
        """
        factor, lasted = self.factor(), tf.where(good, tf.convert_to_tensor(self._good) + 1, 0.0)
        doubled = lasted >= PATIENCE
        self._factor.assign(
            tf.where(good, tf.where(doubled, 2 * factor, factor), tf.maximum(factor / 2, LEAST))
        )
        self._good.assign(tf.where(doubled, 0.0, lasted))
        return good | (factor > LEAST)
