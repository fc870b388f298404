"""Reads a device cache on two replicas (logical CPUs) and saves the images, one array per step: SHARDS OUT RAM."""

from __future__ import annotations

import sys

import numpy as np
import tensorflow as tf

from pipelines.input.batches import Batches
from pipelines.input.cache import CacheBudget
from pipelines.spec import AugmentSpec, DataSpec


def main(shards: str, out: str, ram: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    data = DataSpec(image_size=(2, 3), channels=1, cache="device")
    cache = CacheBudget(strategy, ram=ram, gpu=0)
    batches = Batches(shards, "train", data, 8, seed=8, augment=AugmentSpec(rotation=30), cache=cache)

    @tf.function
    def images(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        return strategy.run(lambda batch: batches.attach(batch)["image"], (batch,))

    found = {"sharded": np.array(batches.tier.is_sharded)}
    for epoch in range(2):
        for step, batch in enumerate(strategy.experimental_distribute_dataset(batches.epoch(epoch))):
            found[f"{epoch}-{step}"] = np.concatenate(strategy.experimental_local_results(images(batch)))
    np.savez(out, **found)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
