"""Batch normalization's mean and variance measured anew, with the weights and the images that are judged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf

from pipelines.input.batches import Batches
from pipelines.records import Batch
from service.training.features import Views
from service.training.strategy import WorkerContext, distributed_eagerly

EPOCH = 0  # an order that no training goes through


class PreciseStatistics:
    """The statistics over training images that nothing augments, under the weights as they are.

    The moving ones are of the weights of each step, not of their average, and of crops and mixtures (Wu and Johnson, "Rethinking 'Batch'
    in BatchNorm", 2021). Dropout before a layer stays on, as it does for those.

    Args:
        views: What is judged, and how a training batch becomes its input. Layers that are frozen keep what they have.
        strategy: Of the training. Build it inside its scope.
        batches: The training split.
        place: Of this process among the workers.
        images: How many images to measure over, rounded up to global batches; never more than the split fills, so none of a split
            smaller than one.
    """

    def __init__(
        self,
        views: Views,
        strategy: tf.distribute.Strategy,
        batches: Batches,
        place: WorkerContext,
        images: int,
    ) -> None:
        self._views, self._strategy, self._batches, self._place = views, strategy, batches, place
        whole = batches.rows // batches.global_batch  # padding would be counted
        self._steps = min(-(-images // batches.global_batch), whole)
        self._layers = [layer for layer in normalizing(views.net) if layer.trainable]
        self._variables = [
            v.value for layer in self._layers for v in (layer.moving_mean, layer.moving_variance)
        ]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts them in the place of the moving statistics for the length of a block; nothing where nothing learns to normalize.

        Every worker must ask.

        Raises:
            DataError: An image cannot be read or decoded.
        """
        if not self._variables or not self._steps:
            yield
            return
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
            for batch in distributed_eagerly(
                self._strategy, self._batches, self._place, EPOCH, stop_step=self._steps
            ):
                found = self._strategy.experimental_local_results(self._moments(batch))[0]
                for total, part in zip(moments, found, strict=True):
                    total += part.numpy() / self._steps
        pairs = zip(moments[::2], moments[1::2], strict=True)
        return [
            tf.constant(value, tf.float32)
            for mean, square in pairs
            for value in (mean, np.maximum(square - mean**2, 0.0))
        ]

    @tf.function(reduce_retracing=True)
    def _moments(self, batch: Batch) -> list[tf.Tensor]:
        return self._strategy.run(self._moments_of_replica, (batch,))

    def _moments_of_replica(self, batch: Batch) -> list[tf.Tensor]:
        """The mean and the mean square that each layer saw, float64, over all replicas: what it adds to statistics that are zero."""
        for variable in self._variables:
            variable.assign(tf.zeros_like(variable))
        self._views.net(tf.cast(self._views.train(batch)["image"], tf.float32), training=True)
        found = []
        for layer in self._layers:
            moved = (tf.cast(v.value, tf.float64) for v in (layer.moving_mean, layer.moving_variance))
            mean, variance = (value / (1 - layer.momentum) for value in moved)
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
