"""Chooses the distribution strategy, and distributes slices of each batch to its replicas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import tensorflow as tf

from pipelines.input.batches import Batches
from pipelines.input.order import batch_per_worker
from pipelines.input.tfdata import count_cores
from pipelines.records import Batch

# Timeout of a sum over the workers, which would otherwise hang forever if one of them is lost.
COLLECTIVE_SECONDS = 120.0


@dataclass(frozen=True)
class WorkerContext:
    """Rank of this worker, and size of its group.

    Attributes:
        rank: Rank of this worker, from 0; only worker 0 writes into the run directory.
        world_size: Number of workers that train together.
        local_size: Number of workers on this machine, including this one; they share its memory.
        attempt: Number of restarts of the workers so far.
    """

    rank: int = 0
    world_size: int = 1
    local_size: int = 1
    attempt: int = 0

    @property
    def is_chief(self) -> bool:
        """Whether this worker is the one that writes into the run directory."""
        return self.rank == 0


SINGLE_WORKER = WorkerContext()


def use_cores(count: int | None = None) -> None:
    """Limits the threads of this process to its share of the cores. Call it before TensorFlow computes.

    At least two operations can run in parallel. On a single thread, a step would run while the next batch is
    requested, and its time would count as waiting for input. If TensorFlow has computed before, as in a
    notebook, its number of threads stays unchanged.

    Args:
        count: Number of cores; None for all, or for the limits in TensorFlow's environment variables.
    """
    with suppress(RuntimeError):  # TensorFlow is already running
        if count is not None:
            tf.config.threading.set_intra_op_parallelism_threads(count)
        tf.config.threading.set_inter_op_parallelism_threads(max(count or count_cores(), 2))


def choose_strategy(global_batch: int, worker: WorkerContext = SINGLE_WORKER) -> tf.distribute.Strategy:
    """Returns the strategy for the available devices.

    That is the default strategy for one device, `MirroredStrategy` for several devices of one worker, and
    `MultiWorkerMirroredStrategy` for several workers. The devices are GPUs if there are any, else the logical
    CPUs. Several workers find each other by `TF_CONFIG`, which Ray Train sets; their strategy has to be
    created before TensorFlow computes anything.

    Args:
        global_batch: Images per step over all replicas.
        worker: Rank and group of this worker.

    Raises:
        ConfigError: The batch does not divide by the number of replicas.
    """
    for gpu in tf.config.list_physical_devices("GPU"):
        with suppress(RuntimeError):  # in use already, as in a notebook
            tf.config.experimental.set_memory_growth(gpu, True)
    strategy = _create_strategy(worker)
    batch_per_worker(global_batch, strategy.num_replicas_in_sync)
    return strategy


def _create_strategy(worker: WorkerContext) -> tf.distribute.Strategy:
    if worker.world_size > 1:
        options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=COLLECTIVE_SECONDS)
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) > 1:
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


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
