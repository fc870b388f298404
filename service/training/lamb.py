"""LAMB as published: the weight decay is part of the update whose norm the trust ratio divides by."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("glassbox")
class Lamb(keras.optimizers.Lamb):  # type: ignore[misc]
    """LAMB (You et al., "Large batch optimization for deep learning", 2020, algorithm 2).

    With `r` the step of Adam, corrected for its bias, and `d = r + weight_decay * w`, the update is
    `w -= learning_rate * |w| / |d| * d`. That of Keras leaves the decay out of `d`. Variables that are
    excluded from the decay are updated by Adam: their ratio is 1, as in the authors' code, because the norm
    of a bias that starts at zero says nothing about its scale.

    Args:
        learning_rate: Factor on every update, a number or a Keras schedule over the updates.
        weight_decay: Factor on the weights in `d`.
        arguments: Further arguments of `keras.optimizers.Lamb`.
    """

    def __init__(
        self, learning_rate: float = 0.001, weight_decay: float | None = None, **arguments: Any
    ) -> None:
        super().__init__(learning_rate, **arguments)
        self.decay = weight_decay or 0.0

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable from its gradient, both of the same shape."""
        first = self._momentums[self._get_variable_index(variable)]
        second = self._velocities[self._get_variable_index(variable)]
        step = ops.cast(self.iterations + 1, variable.dtype)
        self.assign_add(first, (gradient - first) * (1 - self.beta_1))
        self.assign_add(second, (ops.square(gradient) - second) * (1 - self.beta_2))
        mean = first / (1 - ops.power(ops.cast(self.beta_1, variable.dtype), step))
        square = second / (1 - ops.power(ops.cast(self.beta_2, variable.dtype), step))
        update = mean / (ops.sqrt(square) + self.epsilon)
        if self._use_weight_decay(variable):
            update = update + self.decay * variable
            update = update * _compute_trust_ratio(variable, update)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * update)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that build the optimizer again."""
        config: dict[str, Any] = super().get_config()
        return config | {"weight_decay": self.decay}


def _compute_trust_ratio(weights: Any, update: Any) -> Any:
    """Returns the norm of the weights over that of the update; 1 where one of them is 0."""
    norm = ops.sqrt(ops.sum(ops.square(weights)))
    update_norm = ops.sqrt(ops.sum(ops.square(update)))
    is_defined = ops.logical_and(norm > 0, update_norm > 0)
    return ops.where(is_defined, norm / ops.where(is_defined, update_norm, 1.0), 1.0)
