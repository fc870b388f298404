"""Which devices train together: the one place that decides it."""

from __future__ import annotations

import tensorflow as tf

from pipelines.errors import ConfigError


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
