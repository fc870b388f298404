"""Shared by the parts of the GPU check: devices, photos and timing; imports TensorFlow lazily."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from harness import CORES

T = TypeVar("T")
SIZE = (150, 150)
# The augmentation of the published experiment.
PUBLISHED = {"rotation": 40.0, "shift": 0.2, "shear": 0.2, "zoom": 0.2, "flip": True}
RESERVED_SECONDS = 5.0  # time that a part needs to exit
QUERY_SECONDS = 30
THREAD_COUNTS = (1, 4, 8)


class OutOfTimeError(Exception):
    """A check was not done when its part had to end."""


@dataclass(frozen=True)
class CheckContext:
    """Where and for how long a part of the check runs.

    Attributes:
        scratch: Directory for shards, runs and other files.
        deadline: Time by which the part has to end, in seconds of `time.time()`.
        smallest: Whether to do the least work with which everything still runs.
        real: Whether the photos are real ones.
        devices: Number of GPUs of the machine, or of logical CPU devices without one.
    """

    scratch: str
    deadline: float
    smallest: bool = False
    real: bool = False
    devices: int = 1

    @property
    def shards(self) -> Path:
        """Shard set of the photos, with a training and a validation split."""
        return Path(self.scratch) / "shards"

    @cached_property
    def has_gpu(self) -> bool:
        """Whether TensorFlow detects a GPU; configures the devices of this process as a training does."""
        import tensorflow as tf

        from service.devices import configure_devices

        configure_devices()
        return bool(tf.config.get_visible_devices("GPU"))

    def count_devices(self) -> int:
        """Counts the devices of this process that can train."""
        from pipelines.input.placement import list_local_devices

        _ = self.has_gpu  # configures them
        return len(list_local_devices())

    def warm_up(self) -> None:
        """Prepares the device before any clock starts: loads libraries, and compiles a few kernels."""
        import tensorflow as tf

        if not self.has_gpu:
            return
        images = tf.zeros([8, 32, 32, 3])
        kernel = tf.zeros([3, 3, 3, 8])
        for compiled in (False, True):
            convolve = tf.function(lambda x: tf.nn.conv2d(x, kernel, 1, "SAME"), jit_compile=compiled)
            tf.reduce_sum(convolve(images)).numpy()
        synchronize()

    @property
    def device(self) -> str:
        """Device that computes."""
        return "GPU:0" if self.has_gpu else "CPU:0"

    def choose(self, gpu: T, cpu: T, smallest: T) -> T:
        """Returns the amount of work that fits the machine."""
        if self.smallest:
            return smallest
        return gpu if self.has_gpu else cpu

    def as_column(self, value: float | None) -> dict[str, float | None]:
        """Returns a value as the `gpu` or `cpu` argument of a row, depending on the device."""
        return {"gpu" if self.has_gpu else "cpu": value}

    @property
    def remaining_seconds(self) -> float:
        """Seconds until the part has to end."""
        return self.deadline - RESERVED_SECONDS - time.time()


def synchronize() -> None:
    """Waits until all devices have finished their work."""
    import tensorflow as tf

    tf.test.experimental.sync_devices()


def measure_seconds(work: Callable[[], Any], minimum: float, warm_up: bool = True) -> float:
    """Measures the mean duration of a piece of work.

    Args:
        work: Function to call repeatedly.
        minimum: Least total duration of the calls in seconds.
        warm_up: Whether to make an unmeasured call first.

    Returns:
        Seconds per call.
    """
    if warm_up:
        work()
    synchronize()
    count = 0
    start = time.perf_counter()
    while count == 0 or time.perf_counter() - start < minimum:
        work()
        count += 1
        is_power_of_two = count & (count - 1) == 0
        if is_power_of_two:  # the host must not run far ahead of the device
            synchronize()
    synchronize()
    return (time.perf_counter() - start) / count


@contextmanager
def limit_cores(count: int) -> Iterator[None]:
    """Restricts all threads of this process to a number of cores within the block."""
    before = os.sched_getaffinity(0)
    _set_affinity(set(sorted(before)[:count]))
    try:
        yield
    finally:
        _set_affinity(before)


def _set_affinity(cores: set[int]) -> None:
    for task in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task), cores)


def list_thread_counts() -> list[int]:
    """Returns 1, 4, 8 and the number of cores."""
    return sorted({*THREAD_COUNTS, CORES})


def load_photos(
    context: CheckContext, count: int, channels: int = 3, size: tuple[int, int] = SIZE
) -> dict[str, Any]:
    """Loads training photos as a batch of arrays, repeated if there are fewer than `count`."""
    from pipelines.input.batches import read_rows
    from pipelines.input.reader import ShardReader
    from pipelines.spec import DataSpec

    rows = np.arange(count) % ShardReader(context.shards, "train").rows
    spec = DataSpec(image_size=size, channels=channels)
    return dict(read_rows(context.shards, "train", spec, rows.tolist()))


def list_gpu_names(count: int) -> list[str]:
    """Returns what `CUDA_VISIBLE_DEVICES` calls each of the visible GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return visible.split(",") if visible else [str(index) for index in range(count)]


def query_gpus(fields: str = "name,driver_version,memory.total") -> list[str]:
    """Returns some fields of every GPU from the driver; an empty list without one.

    Args:
        fields: Names of fields, as `nvidia-smi --help-query-gpu` lists them.
    """
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=QUERY_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return []
    return result.stdout.strip().splitlines()


def describe_environment(context: CheckContext) -> dict[str, Any]:
    """Returns GPU, driver, CUDA, cuDNN, libraries and CPU."""
    import keras
    import results
    import tensorflow as tf

    build = tf.sysconfig.get_build_info()
    try:
        import nvidia.dali as dali

        dali_version = dali.__version__
    except ImportError:
        dali_version = "not installed"
    host = results.describe_machine({})
    no_gpu = "none that TensorFlow detects: all parts run on the CPU"
    return {
        "GPU": "; ".join(query_gpus()) if context.has_gpu else no_gpu,
        "CUDA of TensorFlow": build.get("cuda_version", "none: a build for CPUs"),
        "cuDNN of TensorFlow": build.get("cudnn_version", "none"),
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "DALI": dali_version,
        "Python": platform.python_version(),
        "CPU": f"{host['cores']} cores of {host['cpu']}, {host['memory_gib']} GiB",
    }
