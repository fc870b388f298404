"""Norms of weights and gradients per layer and epoch, which show layers that do not learn or that explode."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from service.training.optimizers import walk_layers

LayerNorms = dict[str, dict[str, float]]  # of every layer: `weights` and `gradients`

DIGITS = 6  # significant ones of a recorded norm


class GradientNorms:
    """Sums of the squared gradients of all updates of an epoch. Build it inside the strategy's scope.

    The gradient is that of the global batch, after the sum over all replicas and before clipping. All
    replicas add the same to their own copy: there is no communication, and nothing is read before the epoch
    ends.

    Args:
        strategy: Strategy of the training.
        count: Number of weights that are trained.
    """

    def __init__(self, strategy: tf.distribute.Strategy, count: int) -> None:
        self._strategy = strategy
        self._sums = tf.Variable(
            tf.zeros([count + 1], tf.float64),  # the last one counts the updates
            trainable=False,
            aggregation=tf.VariableAggregation.NONE,
        )

    def add(self, squares: tf.Tensor) -> None:
        """Adds the squared norm of every gradient of an update. Call it on every replica.

        Args:
            squares: Squared norm of the gradient of every weight, float32 `[count]`.
        """
        self._sums.assign_add(tf.concat([tf.cast(squares, tf.float64), tf.ones([1], tf.float64)], axis=0))

    def set(self, sums: Sequence[float]) -> None:
        """Sets the sums to those of a position within an epoch; to zero for an empty sequence."""
        values = np.zeros(self._sums.shape, np.float64)
        if len(sums) == len(values):
            values[:] = sums
        self._sums.assign(values)

    def read(self) -> tuple[float, ...]:
        """Returns the sums so far, and the number of updates, from this worker's first replica."""
        local = self._strategy.experimental_local_results(self._sums)[0]
        return tuple(local.numpy().tolist())


def name_weights(model: keras.Model, weights: Sequence[keras.Variable]) -> list[str]:
    """Returns for every weight the layer that it belongs to, as a path from the model on.

    Args:
        model: Model whose layers may be models themselves.
        weights: Trainable weights of the model.
    """
    names: dict[int, str] = {}
    for path, layer in walk_layers(model):
        for variable in layer.weights:
            names.setdefault(id(variable), path)
    return [names.get(id(weight), weight.path.rpartition("/")[0]) for weight in weights]


def summarize_layers(
    names: Sequence[str], weights: Sequence[np.ndarray], sums: Sequence[float]
) -> LayerNorms:
    """Computes the norms of every layer at the end of an epoch.

    Args:
        names: Layer of every weight.
        weights: Value of every weight, float.
        sums: Sums of the squared gradients, and the number of updates, from `GradientNorms.read`.

    Returns:
        For every layer `weights`, the norm of its weights, and `gradients`, the root mean square over the
        updates of the norm of its gradient; both over all weights of the layer together, with six
        significant digits.
    """
    *gradient_squares, updates = sums
    squares: dict[str, list[float]] = {}
    for name, weight, gradient_square in zip(names, weights, gradient_squares, strict=True):
        of_layer = squares.setdefault(name, [0.0, 0.0])
        of_layer[0] += float(np.square(weight.astype(np.float64)).sum())
        of_layer[1] += gradient_square / max(updates, 1.0)
    return {
        name: {"weights": _round(math.sqrt(weight)), "gradients": _round(math.sqrt(gradient))}
        for name, (weight, gradient) in squares.items()
    }


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
