"""Layer times: how long every layer takes, measured one layer at a time on the device of the report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from service.report.analysis.network import Network

PASSES = 3  # measured passes, after one that is not
MOST_IMAGES = 8  # images of a batch


@dataclass(frozen=True)
class LayerTimes:
    """Measured times of the layers of a network.

    Attributes:
        seconds: Seconds of every operation by its name, the shortest of some passes.
        images: Images in the batch.
        device: Type of device, `CPU` or `GPU`.
    """

    seconds: dict[str, float]
    images: int
    device: str

    def compute_share(self, name: str) -> float:
        """Computes the fraction of the whole time that an operation takes."""
        return self.seconds[name] / sum(self.seconds.values())


def measure_layer_times(network: Network, images: np.ndarray) -> LayerTimes:
    """Measures how long every operation of a network takes for a batch.

    Operations run one by one, not compiled to a graph, which would fuse them; the shares are therefore those
    of the operations themselves. The shortest of several passes counts: anything else that the machine does
    can only lengthen it.

    Args:
        network: The network under analysis.
        images: uint8 `[B, H, W, C]`, B >= 1; the first `MOST_IMAGES` are used.
    """
    batch = tf.constant(images[:MOST_IMAGES], tf.float32)
    has_gpu = bool(tf.config.list_logical_devices("GPU"))
    passes: list[dict[str, float]] = []
    for _ in range(1 + PASSES):
        seconds: dict[str, float] = {}
        started = time.perf_counter()

        def record(name: str, _: Any, seconds: dict[str, float] = seconds) -> None:
            nonlocal started
            if has_gpu:  # operations return before they are finished
                tf.test.experimental.sync_devices()
            now = time.perf_counter()
            seconds[name] = now - started
            started = time.perf_counter()

        network.run(batch, on_output=record)
        passes.append(seconds)
    shortest = {name: min(seconds[name] for seconds in passes[1:]) for name in passes[0]}
    return LayerTimes(shortest, len(batch), "GPU" if has_gpu else "CPU")
