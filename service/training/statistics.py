"""Batch normalization's mean and variance measured anew, with the weights and the images that are judged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import keras
import numpy as np
import tensorflow as tf

from pipelines.input.batches import Batches
from pipelines.records import Batch
from service.training.features import Views
from service.training.strategy import Place, distributed_eagerly

EPOCH = 0  # an order that no training goes through


class PreciseStatistics:
    """The statistics over training images that nothing augments, under the weights as they are.

    The moving ones are of the weights of each step, not of their average, and of crops and mixtures (Wu and Johnson, "Rethinking 'Batch'
    in BatchNorm", 2021).

    Args:
        views: What is judged, and how a training batch becomes its input. Layers that are frozen keep what they have.
        strategy: Of the training. Build it inside its scope.
        batches: The training split.
        place: Of this process among the workers.
        images: How many images to measure over, rounded up to global batches; never more than whole ones of the split, but at least one.
    """

    def __init__(self, views: Views, strategy: tf.distribute.Strategy, batches: Batches, place: Place, images: int) -> None:
        self._views, self._strategy, self._batches, self._place = views, strategy, batches, place
        whole = batches.rows // batches.global_batch  # padding would be counted
        self._steps = max(1, min(-(-images // batches.global_batch), whole))
        self._layers = [layer for layer in normalizing(views.net) if layer.trainable]
        self._variables = [v.value for layer in self._layers for v in (layer.moving_mean, layer.moving_variance)]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts them in the place of the moving statistics for the length of a block. Every worker must ask.

        Raises:
            DataError: An image cannot be read or decoded.
        """
        before = [tf.identity(self._strategy.experimental_local_results(v)[0]) for v in self._variables]
        try:
            self._assign(self._measured())
            yield
        finally:
            self._assign(before)

    def _measured(self) -> list[tf.Tensor]:
        """Mean and variance of each layer in turn, `[C]` each."""
        moments = [np.zeros(v.shape, np.float64) for v in self._variables]
        with self._batches.data_errors():
            for batch in islice(distributed_eagerly(self._strategy, self._batches, self._place, EPOCH), self._steps):
                found = self._strategy.experimental_local_results(self._moments(batch))[0]
                for total, part in zip(moments, found, strict=True):
                    total += part.numpy().astype(np.float64) / self._steps
        pairs = zip(moments[::2], moments[1::2], strict=True)
        return [tf.constant(value, tf.float32) for mean, square in pairs for value in (mean, square - mean**2)]

    @tf.function(reduce_retracing=True)
    def _moments(self, batch: Batch) -> list[tf.Tensor]:
        return self._strategy.run(self._moments_of_replica, (batch,))

    def _moments_of_replica(self, batch: Batch) -> list[tf.Tensor]:
        """The mean and the mean square that each layer saw, over all replicas: what it adds to statistics that are zero."""
        for variable in self._variables:
            variable.assign(tf.zeros_like(variable))
        self._views.net(tf.cast(self._views.train(batch)["image"], tf.float32), training=True)
        found = []
        for layer in self._layers:
            mean, variance = (v.value / (1 - layer.momentum) for v in (layer.moving_mean, layer.moving_variance))
            found += [mean, variance + mean**2]
        return tf.distribute.get_replica_context().all_reduce("mean", found)

    @tf.function(reduce_retracing=True)
    def _assign(self, values: list[tf.Tensor]) -> None:
        def on_replica() -> None:
            for variable, value in zip(self._variables, values, strict=True):
                variable.assign(value)

        self._strategy.run(on_replica)


def normalizing(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The layers of a model that normalize batches."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
