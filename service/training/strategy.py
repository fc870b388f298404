"""Which devices train together: the one place that decides it."""

from __future__ import annotations

from collections.abc import Iterable

import tensorflow as tf

from pipelines.errors import ConfigError
from pipelines.records import Batch


def choose_strategy(global_batch: int) -> tf.distribute.Strategy:
    """One device alone, or `MirroredStrategy` over the devices of this worker.

    GPUs where there are any, else the logical CPUs.

    Args:
        global_batch: Images per step over all replicas.

    Raises:
        ConfigError: The batch does not divide by the number of devices.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    devices = [d.name for d in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")]
    if global_batch % len(devices):
        low = global_batch // len(devices) * len(devices)
        near = " or ".join(str(batch) for batch in (low, low + len(devices)) if batch)
        raise ConfigError(f"a global batch that divides by {len(devices)} devices", f"global_batch={global_batch}", f"use {near}")
    return tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy()


def distributed(strategy: tf.distribute.Strategy, batches: Iterable[Batch]) -> Iterable[Batch]:
    """The same batches, with a contiguous slice of each on every replica.

    Args:
        strategy: From `choose_strategy`.
        batches: A `tf.data.Dataset`, or any other iterable of eager tensors.
    """
    if strategy.num_replicas_in_sync == 1:
        return batches
    if isinstance(batches, tf.data.Dataset):
        return strategy.experimental_distribute_dataset(batches)
    return (_shared_out(strategy, batch) for batch in batches)


def _shared_out(strategy: tf.distribute.Strategy, batch: Batch) -> Batch:
    parts = {name: tf.split(value, strategy.num_replicas_in_sync) for name, value in batch.items()}
    place = strategy.experimental_distribute_values_from_function
    return {name: place(lambda context, of=of: of[context.replica_id_in_sync_group]) for name, of in parts.items()}
