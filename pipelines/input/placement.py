"""Places arrays in the memory of one device, without further copies on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

ALIGNMENT = 64  # bytes; TensorFlow's kernels read CPU memory in vectors of up to this size


def allocate(shape: Sequence[int], dtype: Any) -> NDArray[Any]:
    """Returns an array of zeros that TensorFlow can use in place.

    Args:
        shape: Shape of the array.
        dtype: NumPy type of its elements.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    # NumPy aligns to 16 bytes only. Untouched pages of `zeros` take no memory.
    buffer = np.zeros(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    array: NDArray[Any] = buffer[start : start + size].view(dtype).reshape(shape)
    return array


def list_devices(strategy: tf.distribute.Strategy) -> list[str]:
    """Lists the names of the devices of this worker's replicas, in the order of the replicas."""
    if tf.distribute.has_strategy() or strategy is not tf.distribute.get_strategy():
        return list(strategy.extended.worker_devices)
    return list_local_devices()[:1]  # the default strategy, which does not name its device


def list_local_devices() -> list[str]:
    """Lists the names of the devices that can train in this process: the GPUs, else the logical CPUs."""
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return [device.name for device in devices]


def copy_to_device(array: NDArray[Any], device: str) -> tf.Tensor:
    """Returns a tensor with the content of an array, in the memory of a device.

    Returns after the copy to a GPU has ended, so the array's memory can be freed. The CPU devices of this
    process use the array's memory itself. `tf.constant` would copy the array in RAM first.

    Args:
        array: Contiguous array, aligned like those of `allocate`. It must not change afterwards.
        device: Name of the device.

    Raises:
        ValueError: The array is not aligned, on which TensorFlow would end the process.
    """
    if array.ctypes.data % ALIGNMENT:
        raise ValueError(f"array at {array.ctypes.data:#x}, which is not aligned to {ALIGNMENT} bytes")
    shared = tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    with tf.device(device):
        return tf.identity(shared)
