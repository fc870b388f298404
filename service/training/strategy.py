"""Which devices train together, and which slice of a batch each gets: the one place that decides it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import tensorflow as tf

from pipelines.input.batches import Batches
from pipelines.input.order import per_worker
from pipelines.input.tfdata import cores
from pipelines.records import Batch

COLLECTIVE_SECONDS = (
    120.0  # that a sum over the workers may take before it is an error; without a limit it hangs for ever
)


@dataclass(frozen=True)
class WorkerContext:
    """Which of the workers this process is.

    Attributes:
        rank: From 0; worker 0 alone writes into the run directory.
        workers: The world size.
        neighbours: Workers on this machine, this one included; they share its memory.
        attempt: How often the workers had to be started again.
    """

    rank: int = 0
    workers: int = 1
    neighbours: int = 1
    attempt: int = 0

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0


ALONE = WorkerContext()


def use_cores(count: int | None = None) -> None:
    """Limits the threads of this process to its share of the cores; before TensorFlow computes anything.

    Two at least run operations side by side: on one alone a step would run while the next batch is asked for, and pass for waiting.

    Args:
        count: How many; None for all, or for as many as TensorFlow's own variables say.
    """
    if count is not None:
        tf.config.threading.set_intra_op_parallelism_threads(count)
    tf.config.threading.set_inter_op_parallelism_threads(max(count or cores(), 2))


def choose_strategy(global_batch: int, place: WorkerContext = ALONE) -> tf.distribute.Strategy:
    """One device alone, `MirroredStrategy` over the devices of a worker, `MultiWorkerMirroredStrategy` over several workers.

    GPUs where there are any, else the logical CPUs. Several workers find each other by `TF_CONFIG`, which Ray Train sets;
    their strategy has to be chosen before TensorFlow computes anything.

    Args:
        global_batch: Images per step over all replicas.
        place: Of this process among the workers.

    Raises:
        ConfigError: The batch does not divide by the number of replicas.
    """
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    if place.workers > 1:
        options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=COLLECTIVE_SECONDS)
        strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    else:
        devices = [
            d.name for d in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        ]
        strategy = (
            tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy()
        )
    per_worker(global_batch, strategy.num_replicas_in_sync)
    return strategy


def distributed(
    strategy: tf.distribute.Strategy,
    batches: Batches,
    place: WorkerContext,
    epoch: int,
    start_step: int = 0,
    epochs: int = 1,
) -> Iterator[Batch]:
    """Batches of some epochs, with a contiguous slice of each on every replica, for a `tf.function` to iterate.

    Args:
        strategy: From `choose_strategy`.
        batches: The split.
        place: Of this process among the workers.
        epoch: The first epoch.
        start_step: Its first step wanted.
        epochs: How many epochs.

    Returns:
        What a `tf.function` can take as argument; where `batches.eager`, it is as `distributed_eagerly` gives it.
    """
    here = strategy.num_replicas_in_sync // place.workers
    if batches.eager:
        return distributed_eagerly(strategy, batches, place, epoch, start_step, epochs)
    if here == 1:  # spares the strategy's own iterator, which takes a tenth of a second to make
        return iter(batches.epoch(epoch, start_step, place.rank, place.workers, epochs=epochs))
    batches.prepare()  # outside of the strategy's own thread

    def slices(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return batches.epoch(epoch, start_step, place.rank, place.workers, here, epochs)

    return iter(strategy.distribute_datasets_from_function(slices))


def distributed_eagerly(
    strategy: tf.distribute.Strategy,
    batches: Batches,
    place: WorkerContext,
    epoch: int,
    start_step: int = 0,
    epochs: int = 1,
    stop_step: int | None = None,
) -> Iterator[Batch]:
    """The same for Python to iterate, up to a step of every epoch."""
    here = strategy.num_replicas_in_sync // place.workers
    values = strategy.experimental_distribute_values_from_function
    for batch in batches.epoch(
        epoch, start_step, place.rank, place.workers, epochs=epochs, stop_step=stop_step
    ):
        if here == 1:
            yield batch
        else:
            parts = {name: tf.split(value, here) for name, value in batch.items()}
            yield {
                name: values(lambda context, of=of: of[context.replica_id_in_sync_group % here])
                for name, of in parts.items()
            }
