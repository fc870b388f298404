"""Reads a device cache on the replicas of `GLASSBOX_LOGICAL_DEVICES`, saves what it finds: SHARDS OUT RAM...

Saves one array of images per step for each size of the RAM, and whether the rows were sharded. Also saves the
devices of the parts of a larger cache, their rows, and the bytes of RAM that building them took.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from pipelines.input.batches import Batches
from pipelines.input.cache import CacheBudget, DeviceImages, allocate_words, view_images
from pipelines.spec import AugmentSpec, DataSpec
from service.devices import configure_devices
from service.training.strategy import choose_strategy

PART_ROWS = 42
PART_SHAPE = (1024, 1024, 1)


def read_images(strategy: tf.distribute.Strategy, shards: str, ram: int) -> dict[str, np.ndarray]:
    """Reads two epochs from a cache within some bytes of RAM."""
    data = DataSpec(image_size=(2, 3), channels=1, cache="device")
    cache = CacheBudget(strategy, ram=ram, gpu=0)
    batches = Batches(shards, "train", data, 8, seed=8, augment=AugmentSpec(rotation=30), cache=cache)

    @tf.function
    def attach(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        return strategy.run(lambda batch: batches.attach(batch)["image"], (batch,))

    images = {f"{ram}-is_sharded": np.array(batches.tier.is_sharded)}
    for epoch in range(2):
        for step, batch in enumerate(strategy.experimental_distribute_dataset(batches.epoch(epoch))):
            parts = strategy.experimental_local_results(attach(batch))
            images[f"{ram}-{epoch}-{step}"] = np.concatenate(parts)
            images[f"{ram}-devices"] = np.array([part.backing_device for part in parts])
            graph = attach.get_concrete_function(batch).graph
            images[f"{ram}-operations"] = np.array([operation.type for operation in graph.get_operations()])
    return images


def build_parts(strategy: tf.distribute.Strategy, is_sharded: bool) -> dict[str, np.ndarray]:
    """Builds a cache of `PART_ROWS` images of 1 MB, each of a single value, which is its row."""
    words = allocate_words(PART_ROWS, PART_SHAPE)
    view_images(words, PART_SHAPE)[:] = np.arange(PART_ROWS, dtype=np.uint8)[:, None, None, None]
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = measure_peak_memory()
    device_images = DeviceImages(strategy, words, PART_SHAPE, is_sharded)
    found = {"bytes": np.array(measure_peak_memory() - before)}
    found["devices"] = np.array([part.backing_device for part in device_images.parts])
    for replica, part in enumerate(device_images.parts):
        found[f"rows-{replica}"] = part.numpy().view(np.uint8)[:, 0]
    return {f"{is_sharded}-{name}": value for name, value in found.items()}


def measure_peak_memory() -> int:
    """Returns the most bytes of RAM that this process has taken since the counter was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(shards: str, out: str, *sizes: str) -> None:
    """Saves the images for each size of the RAM."""
    configure_devices()
    strategy = choose_strategy(8)
    images: dict[str, np.ndarray] = {}
    for ram in sizes:
        images |= read_images(strategy, shards, int(ram))
    for is_sharded in (False, True):
        images |= build_parts(strategy, is_sharded)
    np.savez(out, **images)


if __name__ == "__main__":
    main(*sys.argv[1:])
