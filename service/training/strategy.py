"""Chooses the distribution strategy for the devices and workers of a run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import tensorflow as tf

from pipelines.input.order import batch_per_worker
from pipelines.input.tfdata import count_cores

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


def find_replica_copy(variable: tf.Variable) -> tf.Variable:
    """Returns the copy of a variable that belongs to the calling replica.

    A replica may assign to its copy without communication. Only what every replica computes alike, such as an
    update from a sum over all of them, keeps the copies equal.

    Args:
        variable: A variable with a copy per replica, or a plain one.
    """
    copies = tf.distribute.get_strategy().experimental_local_results(variable)
    replica = tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group)
    return copies[int(replica) % len(copies)]
