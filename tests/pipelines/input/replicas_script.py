"""Reads a device cache on two replicas (logical CPUs) and saves the images: SHARDS OUT RAM...

Saves one array per step for each size of the RAM, and whether the rows were sharded.
"""

from __future__ import annotations

import sys

import numpy as np
import tensorflow as tf

from pipelines.input.batches import Batches
from pipelines.input.cache import CacheBudget
from pipelines.spec import AugmentSpec, DataSpec


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
    return images


def main(shards: str, out: str, *sizes: str) -> None:
    """Saves the images for each size of the RAM."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    images: dict[str, np.ndarray] = {}
    for ram in sizes:
        images |= read_images(strategy, shards, int(ram))
    np.savez(out, **images)


if __name__ == "__main__":
    main(*sys.argv[1:])
