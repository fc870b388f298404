"""Shares batches out to two logical CPUs and prints, as JSON, which rows each replica got: run as a program."""

from __future__ import annotations

import json

import tensorflow as tf

from service.training.strategy import choose_strategy, distributed


def main() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = choose_strategy(4)
    dataset = tf.data.Dataset.range(8).batch(4).map(lambda row: {"row": row, "affine": tf.cast(row, tf.float32)[:, None]})
    found = {}
    for name, batches in (("dataset", dataset), ("iterator", iter(dataset))):
        found[name] = [
            [[part.numpy().tolist() for part in strategy.experimental_local_results(batch[key])] for key in ("row", "affine")]
            for batch in distributed(strategy, batches)
        ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
