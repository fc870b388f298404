"""What the parts of the GPU check share: the machine, the photos as shards, clocks. TensorFlow is imported only where it is used."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from arena import CORES

T = TypeVar("T")
SIZE = (150, 150)
PUBLISHED = {
    "rotation": 40.0,
    "shift": 0.2,
    "shear": 0.2,
    "zoom": 0.2,
    "flip": True,
}  # the augmentation of the published experiment
SPARE = 5.0  # seconds that a part needs to end


@dataclass(frozen=True)
class Lab:
    """Where a part runs.

    Attributes:
        scratch: A directory for anything.
        ends: When the part has to be done, in seconds of `time.time()`.
        smallest: Whether this is only to see that everything runs.
        real: Whether the photos are real ones.
    """

    scratch: str
    ends: float
    smallest: bool = False
    real: bool = False

    @property
    def shards(self) -> Path:
        """The photos, with a training and a validation split."""
        return Path(self.scratch) / "shards"

    @cached_property
    def gpu(self) -> bool:
        """Whether TensorFlow sees a GPU; its memory is then taken as it is needed."""
        import tensorflow as tf

        found = tf.config.list_physical_devices("GPU")
        for device in found:
            tf.config.experimental.set_memory_growth(device, True)
        return bool(found)

    def find_devices(self) -> None:
        """Has GPUs take memory as it is needed, which they have to be told before anything is computed."""
        _ = self.gpu

    @property
    def device(self) -> str:
        """What computes."""
        return "GPU:0" if self.gpu else "CPU:0"

    def pick(self, gpu: T, cpu: T, smallest: T) -> T:
        """An amount of work that fits the machine."""
        return smallest if self.smallest else gpu if self.gpu else cpu

    def column(self, value: float | None) -> dict[str, float | None]:
        """A figure in the column of what computes."""
        return {"gpu" if self.gpu else "cpu": value}

    @property
    def left(self) -> float:
        """Seconds until the part has to be done."""
        return self.ends - SPARE - time.time()


def finished() -> None:
    """Waits until the devices have done what they were given."""
    import tensorflow as tf

    tf.test.experimental.sync_devices()


def seconds_each(work: Callable[[], Any], least: float, warm: bool = True) -> float:
    """The seconds that a piece of work takes, over as many as fill `least` seconds; after one that does not count."""
    if warm:
        work()
    finished()
    began, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - began < least:
        work()
        count += 1
        if count & (count - 1) == 0:
            finished()
    finished()
    return (time.perf_counter() - began) / count


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Within the block all threads of this process share so many cores."""
    before = os.sched_getaffinity(0)
    _bind(set(sorted(before)[:count]))
    try:
        yield
    finally:
        _bind(before)


def _bind(cores: set[int]) -> None:
    for task in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task), cores)


def thread_counts() -> list[int]:
    """1, 4, 8 and all threads."""
    return sorted({1, 4, 8, CORES})


def photos(lab: Lab, count: int, channels: int = 3, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """Some of the training photos as a batch of arrays; again from the first where there are fewer."""
    from pipelines.input.batches import read_rows
    from pipelines.input.reader import ShardReader
    from pipelines.spec import DataSpec

    rows = np.arange(count) % ShardReader(lab.shards, "train").rows
    return dict(read_rows(lab.shards, "train", DataSpec(image_size=size, channels=channels), rows.tolist()))


def graphics() -> list[str]:
    """Name, driver and memory of every GPU, as the driver tells; nothing where there is none."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return (
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
            .stdout.strip()
            .splitlines()
        )
    except (OSError, subprocess.SubprocessError):
        return []


def environment(lab: Lab) -> dict[str, Any]:
    """GPU, driver, CUDA, cuDNN, libraries, processor."""
    import platform

    import keras
    import table
    import tensorflow as tf

    build = tf.sysconfig.get_build_info()
    try:
        import nvidia.dali as dali

        decoder = dali.__version__
    except ImportError:
        decoder = "not installed"
    host = table.machine({})
    return {
        "GPU": "; ".join(graphics()) if lab.gpu else "none that TensorFlow sees: all parts run on the CPU",
        "CUDA of TensorFlow": build.get("cuda_version", "none: a build for CPUs"),
        "cuDNN of TensorFlow": build.get("cudnn_version", "none"),
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "DALI": decoder,
        "Python": platform.python_version(),
        "CPU": f"{host['cores']} cores of {host['cpu']}, {host['memory_gib']} GiB",
    }
