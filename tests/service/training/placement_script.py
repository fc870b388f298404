"""Trains a run on the replicas of `GLASSBOX_LOGICAL_DEVICES` and tells where everything is: RUN OUT.

RUN holds the config.yaml of a run. OUT becomes a JSON object: for each source of batches the rows of its
first batch on each replica and the devices of its arrays; the devices of all variables; and for every
iterator over a dataset whether TensorFlow tunes it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.data.ops.iterator_ops import OwnedIterator
from tiny_models import register_tiny_models

from pipelines.input.batches import Batches
from pipelines.input.cache import CacheBudget
from pipelines.input.dali import is_available
from pipelines.records import Batch
from service.config import RunConfig
from service.devices import configure_devices
from service.runs import Run
from service.training.distribute import distribute_batches, distribute_eager_batches
from service.training.loop import Loop
from service.training.strategy import SINGLE_WORKER

SOURCES: dict[str, dict[str, Any]] = {
    "tf.data": {"backend": "tfdata", "cache": "none"},
    "host cache": {"backend": "tfdata", "cache": "host"},
    "device cache": {"backend": "tfdata", "cache": "device"},
    "DALI": {"backend": "dali", "cache": "none"},
}


def describe(strategy: tf.distribute.Strategy, batch: Batch) -> dict[str, Any]:
    """Returns the device of every array of a batch on each replica, and the rows."""
    arrays = {name: strategy.experimental_local_results(value) for name, value in batch.items()}
    devices = {name: [part.backing_device for part in parts] for name, parts in arrays.items()}
    return {"devices": devices, "rows": [part.numpy().tolist() for part in arrays["row"]]}


def describe_sources(strategy: tf.distribute.Strategy, config: RunConfig) -> dict[str, Any]:
    """Describes the first batch of every source, for training and for evaluation."""
    found = {}
    for name, settings in SOURCES.items():
        if settings["backend"] == "dali" and not is_available():
            continue
        data = config.data.model_copy(update=settings)
        cache = CacheBudget(strategy, ram=10**8, gpu=0)
        batches = Batches(
            config.shards,
            "train",
            data,
            config.global_batch,
            seed=config.seed,
            augment=config.augment,
            cache=cache,
        )
        for purpose, distribute in (
            ("training", distribute_batches),
            ("evaluation", distribute_eager_batches),
        ):
            iterator = distribute(strategy, batches, SINGLE_WORKER, 1)
            found[f"{name}, {purpose}"] = describe(strategy, next(iterator))
    return found


def list_variable_devices(loop: Loop) -> dict[str, list[str]]:
    """Returns the devices of the parts of every variable that a checkpoint holds."""
    devices = {}
    for group, variables in loop.learner.variables.items():
        for index, variable in enumerate(variables):
            value = variable.value if isinstance(variable, keras.Variable) else variable
            parts = loop.strategy.experimental_local_results(value)
            devices[f"{group} {index}: {variable.name}"] = [part.device for part in parts]
    return devices


def record_iterators() -> list[bool]:
    """Returns a list to which every iterator that is created from now on adds whether it is tuned."""
    tuned: list[bool] = []
    create = OwnedIterator._create_iterator

    def create_recorded(iterator: OwnedIterator, dataset: tf.data.Dataset) -> None:
        tuned.append(dataset.options().autotune.enabled is not False)
        create(iterator, dataset)

    OwnedIterator._create_iterator = create_recorded
    return tuned


def main(path: str, out: str) -> None:
    tuned = record_iterators()
    configure_devices()
    run = Run(path)
    config = RunConfig.model_validate(run.config())
    loop = Loop(config, run, SINGLE_WORKER)
    loop.run_epochs()
    loop.writer.wait()
    found = {
        "batches": describe_sources(loop.strategy, config),
        "variables": list_variable_devices(loop),
        "tuned": tuned,
    }
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    with register_tiny_models():
        main(*sys.argv[1:])
