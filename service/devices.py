"""Configures the devices of a process, once at its start: GPUs, logical CPUs and threads."""

from __future__ import annotations

import os
from contextlib import suppress

from pipelines.errors import ConfigError

LOGICAL_DEVICES = "GLASSBOX_LOGICAL_DEVICES"  # environment variable: number of logical CPU devices


def configure_devices() -> None:
    """Configures TensorFlow's devices in this process. Call it before TensorFlow computes.

    The memory of GPUs is allocated as it is needed, so that several processes can share one. With
    `GLASSBOX_LOGICAL_DEVICES=N`, the GPUs are hidden and the CPU is split into N logical devices, each of which
    trains as one replica. A process that has computed already, such as a notebook, keeps its devices.

    Raises:
        ConfigError: `GLASSBOX_LOGICAL_DEVICES` is not a number of devices, or TensorFlow has computed with
            another number already.
    """
    logical_devices = read_logical_devices()

    import tensorflow as tf

    if logical_devices:
        _split_cpu(logical_devices)
    for gpu in tf.config.list_physical_devices("GPU"):
        with suppress(RuntimeError):  # in use already, as in a notebook
            tf.config.experimental.set_memory_growth(gpu, True)


def read_logical_devices() -> int | None:
    """Reads the number of logical CPU devices from the environment; None if it is not set.

    Raises:
        ConfigError: The value is not a whole number of at least 1.
    """
    value = os.environ.get(LOGICAL_DEVICES, "").strip()
    if not value:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(
            "a number of logical CPU devices, at least 1",
            f"{LOGICAL_DEVICES}={value}",
            f"set {LOGICAL_DEVICES}=2, or unset it",
        )
    return int(value)


def _split_cpu(count: int) -> None:
    """Splits the CPU into logical devices, and hides the GPUs, which would be used instead.

    Raises:
        ConfigError: TensorFlow has computed with another number of devices.
    """
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_visible_devices([], "GPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        if len(tf.config.list_logical_devices("CPU")) == count and not tf.config.list_logical_devices("GPU"):
            return
        raise ConfigError(
            "a process in which TensorFlow has not computed yet",
            f"{LOGICAL_DEVICES}={count}",
            f"start a new process, or unset {LOGICAL_DEVICES}",
        ) from None
