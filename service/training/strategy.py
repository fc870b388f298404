"""Chooses the distribution strategy for the devices and workers of a run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import tensorflow as tf
from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended

from pipelines.input.order import batch_per_worker
from pipelines.input.placement import list_local_devices
from pipelines.spec import AugmentSpec
from service.training.replicas import choose_replicas


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


def choose_strategy(
    global_batch: int, worker: WorkerContext = SINGLE_WORKER, augment: AugmentSpec | None = None
) -> tf.distribute.Strategy:
    """Returns the strategy for the available devices.

    That is the default strategy for one device, `MirroredStrategy` for several devices of one worker, of
    which it uses as many as can share the batch evenly, and
    `MultiWorkerMirroredStrategy` for several workers. The devices are GPUs if there are any, else the logical
    CPUs. Several workers find each other by `TF_CONFIG`, which Ray Train sets; their strategy has to be
    created before TensorFlow computes anything.

    Args:
        global_batch: Images per step over all replicas.
        worker: Rank and group of this worker.
        augment: Augmentation, which may need an even batch on every replica; None for no augmentation.

    Raises:
        ConfigError: The batch does not divide by the number of replicas of several workers.
    """
    strategy = _create_strategy(worker, global_batch, augment)
    batch_per_worker(global_batch, strategy.num_replicas_in_sync)
    return strategy


def _create_strategy(
    worker: WorkerContext, global_batch: int, augment: AugmentSpec | None
) -> tf.distribute.Strategy:
    if worker.world_size > 1:
        return _create_multi_worker_strategy()
    devices = list_local_devices()
    replicas = choose_replicas(len(devices), global_batch, augment)
    if replicas > 1:
        return _LocalStrategy(devices[:replicas])
    return tf.distribute.get_strategy()


def _create_multi_worker_strategy() -> tf.distribute.MultiWorkerMirroredStrategy:
    """Creates the strategy of several workers: sums by NCCL between GPUs, in a ring between CPUs.

    TensorFlow does not choose NCCL by itself. A timeout per sum is not set: TensorFlow keeps two threads
    waiting for each one, for as long as it lasts. `Watchdog` detects a worker that does not respond.
    """
    implementations = tf.distribute.experimental.CommunicationImplementation
    # Physical devices: listing the logical ones would start TensorFlow before the workers are connected.
    has_gpus = bool(tf.config.get_visible_devices("GPU"))
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=implementations.NCCL if has_gpus else implementations.RING
    )
    if not has_gpus and count_logical_cpus() > 1:
        strategy = _LogicalCpuStrategy(options)
    else:
        strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    # All workers have the same number of batches, so they need not ask each other for every one.
    strategy.extended.experimental_enable_get_next_as_optional = False
    return strategy


def sum_over_workers(strategy: tf.distribute.Strategy, worker: WorkerContext, value: tf.Tensor) -> tf.Tensor:
    """Returns the sum of a tensor over all workers. A collective: call it in a `tf.function` on every worker.

    Args:
        strategy: Strategy from `choose_strategy`.
        worker: Rank and group of this worker.
        value: Summand of this worker, of the same shape on all workers; floating, because TensorFlow divides
            the result of a sum, for which it has no kernel with integers on a GPU.
    """
    local_replicas = strategy.num_replicas_in_sync // worker.world_size

    def sum_on_replica() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        is_first = context.replica_id_in_sync_group % local_replicas == 0  # one replica per worker
        return context.all_reduce("sum", tf.where(is_first, value, tf.zeros_like(value)))

    return strategy.experimental_local_results(strategy.run(sum_on_replica))[0]


def find_minimum(strategy: tf.distribute.Strategy, worker: WorkerContext, values: Sequence[int]) -> list[int]:
    """Returns the smallest of each value over all workers. A collective: every worker must call it.

    Args:
        strategy: Strategy from `choose_strategy`.
        worker: Rank and group of this worker.
        values: Values of this worker, below 2**53.
    """
    own = np.zeros((worker.world_size, len(values)))
    own[worker.rank] = values
    table = tf.function(partial(sum_over_workers, strategy, worker), autograph=False)(tf.constant(own))
    return [int(value) for value in table.numpy().min(axis=0)]


def count_logical_cpus() -> int:
    """Returns the number of logical devices of the CPU, without starting TensorFlow."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    return len(tf.config.get_logical_device_configuration(cpu) or [cpu])


# TensorFlow remembers the shapes of all sums of a process by their key; two trainings must not share keys.
_KEY_BASES = itertools.count(0, 100_000)


class _LocalStrategy(tf.distribute.MirroredStrategy):  # type: ignore[misc]
    """The devices of one worker, in a process that may train several models one after the other."""

    def __init__(self, devices: list[str]) -> None:
        self._collective_key_base = next(_KEY_BASES)
        super().__init__(devices)


class _LogicalCpuExtended(CollectiveAllReduceExtended):  # type: ignore[misc]
    """Uses all logical CPU devices of a worker, of which TensorFlow takes only the first."""

    def _initialize_local_devices(
        self, cluster_resolver: tf.distribute.cluster_resolver.ClusterResolver, worker_device: str
    ) -> tuple[tuple[str, ...], str]:
        devices = [f"{worker_device}/device:CPU:{index}" for index in range(count_logical_cpus())]
        return tuple(devices), "CPU"


class _LogicalCpuStrategy(tf.distribute.MultiWorkerMirroredStrategy):  # type: ignore[misc]
    """Several logical CPU devices on each of several workers, to try many replicas without GPUs."""

    def __init__(self, options: tf.distribute.experimental.CommunicationOptions) -> None:
        extended = _LogicalCpuExtended(self, cluster_resolver=None, communication_options=options)
        tf.distribute.Strategy.__init__(self, extended)


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
