"""Distributes slices of each batch to the replicas of this worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from typing import Any

import tensorflow as tf
from tensorflow.python.data.ops import multi_device_iterator_ops

from pipelines.input.batches import Batches
from pipelines.input.placement import list_devices
from pipelines.input.tfdata import disable_autotuning
from pipelines.records import Batch
from service.training.strategy import WorkerContext

# Eager batches in flight while the next one is taken. On a GPU, DALI may overwrite a batch once three more
# have been taken.
IN_FLIGHT = 2


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

    with _untuned_device_datasets():
        return iter(strategy.distribute_datasets_from_function(make_dataset))


@contextmanager
def _untuned_device_datasets() -> Iterator[None]:
    """Disables autotuning in the datasets that a strategy makes for its devices in this block.

    They do not take over the options of the dataset that they read, so that the end of every epoch could take
    up to a minute for each device (see `disable_autotuning`).
    """
    create = multi_device_iterator_ops._create_device_dataset

    def create_untuned(*arguments: Any) -> tf.data.Dataset:
        return disable_autotuning(create(*arguments))

    multi_device_iterator_ops._create_device_dataset = create_untuned
    try:
        yield
    finally:
        multi_device_iterator_ops._create_device_dataset = create


def distribute_eager_batches(
    strategy: tf.distribute.Strategy,
    batches: Batches,
    worker: WorkerContext,
    epoch: int,
    start_step: int = 0,
    epochs: int = 1,
    stop_step: int | None = None,
) -> Iterator[Batch]:
    """Returns the batches of `distribute_batches` for Python, up to a step of every epoch.

    Where DALI decodes, each replica has a pipeline of its own, on its own device. A cache is filled before
    this returns.
    """
    devices = list_devices(strategy)
    if batches.is_eager:
        pipelines = []
        for index, device in enumerate(devices):
            replica = worker.rank * len(devices) + index
            replica_batches = batches.for_replica(device, len(devices))
            pipelines.append(
                replica_batches.epoch(
                    epoch,
                    start_step,
                    replica,
                    worker.world_size * len(devices),
                    epochs=epochs,
                    stop_step=stop_step,
                )
            )
        return _join_replicas(strategy, _zip_pipelines(pipelines))

    epoch_batches = batches.epoch(
        epoch, start_step, worker.rank, worker.world_size, len(devices), epochs, stop_step
    )
    if len(devices) == 1:
        return iter(epoch_batches)
    return _join_replicas(strategy, _group_by_step(iter(epoch_batches), devices))


def _zip_pipelines(pipelines: Sequence[Iterator[Batch]]) -> Iterator[Sequence[Batch]]:
    """Yields the batches of every step, one of each pipeline; ends the pipelines when it is closed."""
    with ExitStack() as stack:
        for pipeline in pipelines:
            stack.enter_context(closing(pipeline))
        yield from zip(*pipelines, strict=True)


def _group_by_step(batches: Iterator[Batch], devices: Sequence[str]) -> Iterator[Sequence[Batch]]:
    """Yields the batches of every step, of which there is one for each device, on their devices."""
    for first in batches:
        parts = [first, *islice(batches, len(devices) - 1)]
        yield [_place(part, device) for part, device in zip(parts, devices, strict=True)]


def _place(batch: Batch, device: str) -> Batch:
    with tf.device(device):
        return {name: tf.identity(value) for name, value in batch.items()}


def _join_replicas(strategy: tf.distribute.Strategy, steps: Iterator[Sequence[Batch]]) -> Iterator[Batch]:
    """Joins the batches of every step, one for each replica of this worker, into one for `strategy.run`."""
    with closing(steps):
        for parts in steps:
            yield parts[0] if len(parts) == 1 else _join(strategy, parts)


def _join(strategy: tf.distribute.Strategy, parts: Sequence[Batch]) -> Batch:
    # The function places nothing: its values stay on the devices that they are on.
    return strategy.experimental_distribute_values_from_function(
        lambda context: parts[context.replica_id_in_sync_group % len(parts)]
    )
