"""Recomputes the mean and variance of batch normalization for evaluation ("precise" batch norm)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf

from pipelines.input.batches import Batches
from pipelines.records import Batch
from service.training.distribute import distribute_eager_batches
from service.training.features import StageNetwork
from service.training.strategy import WorkerContext

EPOCH = 0  # number of an epoch whose order training does not use, because its epochs count from 1


class PreciseStatistics:
    """Statistics over training images without augmentation, for the current weights.

    The moving averages were computed with the weights of each step, not with their average, and on cropped
    and mixed images (Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021). Dropout before a layer stays
    on, as for the moving averages. Build it inside the strategy's scope.

    Args:
        stage_network: The network that is evaluated, and its input. Frozen layers keep their statistics.
        strategy: Strategy of the training.
        batches: Batches of the training split.
        worker: Rank and group of this worker.
        images: Number of images to measure, rounded up to global batches. Padded batches are left out, so a
            split smaller than one global batch yields no statistics.
    """

    def __init__(
        self,
        stage_network: StageNetwork,
        strategy: tf.distribute.Strategy,
        batches: Batches,
        worker: WorkerContext,
        images: int,
    ) -> None:
        self._stage_network = stage_network
        self._strategy = strategy
        self._batches = batches
        self._worker = worker
        full_batches = batches.epoch_rows // batches.global_batch
        self._steps = min(math.ceil(images / batches.global_batch), full_batches)
        self._layers = [layer for layer in find_batch_norms(stage_network.network) if layer.trainable]
        self._variables: list[tf.Variable] = []
        for layer in self._layers:
            self._variables += [layer.moving_mean.value, layer.moving_variance.value]

    @contextmanager
    def swap_in(self) -> Iterator[None]:
        """Replaces the moving statistics for the length of a block. A collective: every worker must call it.

        Without trainable batch normalization nothing changes.

        Raises:
            DataError: An image cannot be read or decoded.
        """
        if not self._variables or not self._steps:
            yield
            return
        moving_statistics = [
            tf.identity(self._strategy.experimental_local_results(v)[0]) for v in self._variables
        ]
        try:
            self._assign(self._measure())
            yield
        finally:
            self._assign(moving_statistics)

    def _measure(self) -> list[tf.Tensor]:
        """Returns mean and variance of each layer in turn, float32 `[C]` each."""
        moments = [np.zeros(v.shape, np.float64) for v in self._variables]
        batches = distribute_eager_batches(
            self._strategy, self._batches, self._worker, EPOCH, stop_step=self._steps
        )
        with self._batches.data_errors():
            for batch in batches:
                batch_moments = self._strategy.experimental_local_results(self._compute_moments(batch))[0]
                for total, moment in zip(moments, batch_moments, strict=True):
                    total += moment.numpy() / self._steps

        statistics = []
        for mean, mean_square in zip(moments[::2], moments[1::2], strict=True):
            variance = np.maximum(mean_square - mean**2, 0.0)
            statistics += [tf.constant(mean, tf.float32), tf.constant(variance, tf.float32)]
        return statistics

    @tf.function(reduce_retracing=True, autograph=False)
    def _compute_moments(self, batch: Batch) -> list[tf.Tensor]:
        return self._strategy.run(self._compute_moments_on_replica, (batch,))

    def _compute_moments_on_replica(self, batch: Batch) -> list[tf.Tensor]:
        """Returns mean and mean square of each layer's input over all replicas, float64 `[C]` each.

        They are derived from moving statistics that start at zero and are updated by one forward pass.
        """
        for variable in self._variables:
            variable.assign(tf.zeros_like(variable))
        images = self._stage_network.attach_train(batch)["image"]
        self._stage_network.network(tf.cast(images, tf.float32), training=True)
        moments = []
        for layer in self._layers:
            mean = tf.cast(layer.moving_mean.value, tf.float64) / (1 - layer.momentum)
            variance = tf.cast(layer.moving_variance.value, tf.float64) / (1 - layer.momentum)
            moments += [mean, variance + mean**2]
        return tf.distribute.get_replica_context().all_reduce("mean", moments)

    @tf.function(reduce_retracing=True, autograph=False)
    def _assign(self, values: list[tf.Tensor]) -> None:
        def assign_on_replica() -> None:
            for variable, value in zip(self._variables, values, strict=True):
                variable.assign(value)

        self._strategy.run(assign_on_replica)


def find_batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Returns the batch normalization layers of a model, nested ones included."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
