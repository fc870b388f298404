"""Distributes slices of each batch to the replicas of this worker."""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow as tf

from pipelines.input.batches import Batches
from pipelines.records import Batch
from service.training.strategy import WorkerContext


def distribute_batches(
    strategy: tf.distribute.Strategy,
    batches: Batches,
    worker: WorkerContext,
    epoch: int,
    start_step: int = 0,
    epochs: int = 1,
) -> Iterator[Batch]:
    """Returns the batches of some epochs, with a contiguous slice of each on every replica.

    Args:
        strategy: Strategy from `choose_strategy`.
        batches: Batches of the split.
        worker: Rank and group of this worker.
        epoch: The first epoch.
        start_step: Step of the first epoch to start at.
        epochs: Number of epochs in a row.

    Returns:
        An iterator that a `tf.function` takes as argument; if `batches.is_eager`, that of
        `distribute_eager_batches`.
    """
    local_replicas = strategy.num_replicas_in_sync // worker.world_size
    if batches.is_eager:
        return distribute_eager_batches(strategy, batches, worker, epoch, start_step, epochs)
    if local_replicas == 1:  # saves the strategy's own iterator, which takes a tenth of a second to create
        return iter(batches.epoch(epoch, start_step, worker.rank, worker.world_size, epochs=epochs))
    batches.fill_cache()  # outside of the strategy's own thread

    def make_dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return batches.epoch(epoch, start_step, worker.rank, worker.world_size, local_replicas, epochs)

    return iter(strategy.distribute_datasets_from_function(make_dataset))


def distribute_eager_batches(
    strategy: tf.distribute.Strategy,
    batches: Batches,
    worker: WorkerContext,
    epoch: int,
    start_step: int = 0,
    epochs: int = 1,
    stop_step: int | None = None,
) -> Iterator[Batch]:
    """Yields the batches of `distribute_batches` to Python, up to a step of every epoch."""
    local_replicas = strategy.num_replicas_in_sync // worker.world_size
    epoch_batches = batches.epoch(
        epoch, start_step, worker.rank, worker.world_size, epochs=epochs, stop_step=stop_step
    )
    for batch in epoch_batches:
        yield batch if local_replicas == 1 else _split(strategy, batch, local_replicas)


def _split(strategy: tf.distribute.Strategy, batch: Batch, local_replicas: int) -> Batch:
    """Splits a worker's batch `[B, ...]` into one of `[B / local_replicas, ...]` for each of its replicas."""

    def spread(value: tf.Tensor) -> tf.Tensor:
        parts = tf.split(value, local_replicas)
        return strategy.experimental_distribute_values_from_function(
            lambda context: parts[context.replica_id_in_sync_group % local_replicas]
        )

    return {name: spread(value) for name, value in batch.items()}
