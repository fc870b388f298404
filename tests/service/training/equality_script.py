"""Trains a tiny network on some number of logical CPUs, without augmentation and with all of it, and writes its weights.

Run as a program, `DEVICES OUT`.
"""

from __future__ import annotations

import sys

import keras
import numpy as np
import tensorflow as tf

from pipelines.augment.draw import draw
from pipelines.spec import AugmentSpec, DataSpec
from service.models import head
from service.training.step import StepOptions, Steps
from service.training.strategy import choose_strategy

ROWS, GLOBAL_BATCH, EPOCHS = 27, 8, 3  # the last batch has 3 examples and 5 rows of padding
EVERYTHING = AugmentSpec(rotation=40.0, flip=True, contrast=0.3, erase=0.5, mixup=0.4, cutmix=1.0, fill="constant", fill_value=90.0)


def batches(augment: AugmentSpec | None = None) -> tf.data.Dataset:
    images = np.random.default_rng(7).integers(0, 256, (ROWS, 6, 6, 1)).astype(np.uint8)
    padding = -ROWS % GLOBAL_BATCH
    columns = {
        "image": np.concatenate([images, np.full((padding, 6, 6, 1), 255, np.uint8)]),  # padding that would be seen if it counted
        "label": np.concatenate([(images.mean((1, 2, 3)) > 127).astype(np.int32), np.ones(padding, np.int32)]),
        "weight": np.repeat(np.float32([1, 0]), [ROWS, padding]),
        "row": np.concatenate([np.arange(ROWS), np.full(padding, -1)]),
    }
    if augment is not None:
        columns |= draw(augment, 5, 1, columns["row"], DataSpec(image_size=(6, 6), channels=1))
    return tf.data.Dataset.from_tensor_slices(columns).batch(GLOBAL_BATCH, drop_remainder=True)


def model() -> keras.Model:
    inputs = keras.Input((6, 6, 1))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(4, 3, activation="relu")(x)
    return keras.Model(inputs, head(keras.layers.Flatten()(x), 3))


def train(augment: AugmentSpec | None) -> dict[str, np.ndarray]:
    keras.utils.set_random_seed(3)
    strategy = choose_strategy(GLOBAL_BATCH)
    with strategy.scope():
        net, optimizer = model(), keras.optimizers.SGD(0.05, momentum=0.9)
        steps = Steps(net, optimizer, strategy, StepOptions(augment=augment))
    results = {"replicas": np.array(strategy.num_replicas_in_sync)}
    for epoch in range(EPOCHS):
        for batch in strategy.experimental_distribute_dataset(batches(augment)):
            steps.train(batch)
        totals = steps.take_totals()
        results[f"totals{epoch}"] = np.array([totals.loss, totals.hits, totals.weight])
    for batch in strategy.experimental_distribute_dataset(batches()):
        steps.evaluate(batch)
    totals = steps.take_totals()
    results["evaluated"] = np.array([totals.loss, totals.hits, totals.weight])
    return results | {f"weight{i}": v.numpy() for i, v in enumerate(net.variables)}


def main(devices: int, out: str) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    runs = {"plain": train(None), "augmented": train(EVERYTHING)}
    np.savez(out, **{f"{run}/{name}": value for run, results in runs.items() for name, value in results.items()})


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
