"""Candidates of the training benchmark: the bare step, this project's loop, Keras' `fit`, tutorial code."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from worker import Rounds

TESTS = Path(__file__).resolve().parents[1]
LEARNING_RATE = 0.0001
EPOCHS = 1000  # more than any benchmark trains


def _build_config(model: str, shards: str, batch: int, data: dict[str, Any], **changes: Any) -> Any:
    from service.config import RunConfig

    settings = {
        "preset": "benchmark",
        "model": model,
        "shards": shards,
        "global_batch": batch,
        "epochs": EPOCHS,
        "data": {"cache": "host"} | data,
        "optimizer": {"name": "rmsprop", "learning_rate": LEARNING_RATE},
    }
    return RunConfig.model_validate(settings | changes)


def _load_model_and_images(config: Any) -> tuple[Any, Any, Any]:
    """Builds the model, and reads all images, uint8 `[rows, H, W, C]`, with their labels."""
    import numpy as np
    import tensorflow as tf

    from pipelines.input.cache import CacheBudget
    from service.training.learner import build_network, open_splits

    strategy = tf.distribute.get_strategy()
    train, _ = open_splits(config, CacheBudget(strategy))
    images = np.concatenate([batch["image"] for batch in train.epoch(1)])[: train.rows]
    labels = np.concatenate([batch["label"] for batch in train.epoch(1)])[: train.rows]
    return build_network(config, strategy, train), images, labels


def bare_step(**settings: Any) -> Rounds:
    """Repeats forward pass, backward pass and update on one batch: a hand-written step, one call per step."""
    import keras
    import tensorflow as tf

    from service.models.layers import build_logits_model
    from service.training.losses import example_losses

    config = _build_config(**settings)
    model, images, labels = _load_model_and_images(config)
    logits_model = build_logits_model(model)
    optimizer = keras.optimizers.RMSprop(LEARNING_RATE)
    optimizer.build(logits_model.trainable_variables)
    batch_images = tf.constant(images[: config.global_batch])
    batch_labels = tf.constant(labels[: config.global_batch])

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = logits_model(tf.cast(images, tf.float32), training=True)
            loss = tf.reduce_mean(example_losses(labels, logits))
        weights = logits_model.trainable_variables
        gradients = tape.gradient(loss, [weight.value for weight in weights])
        optimizer.apply(gradients, weights)
        return loss

    steps = -(-len(images) // config.global_batch)
    yield None
    while True:
        for _ in range(steps):
            loss = step(batch_images, batch_labels)
        float(loss)  # waits until the device has finished
        yield None


def ours(**settings: Any) -> Rounds:
    """Trains an epoch with the loop of a worker, including checkpoint and metrics."""
    from service.runs import Run
    from service.training.events import open_epoch_log
    from service.training.loop import Loop
    from service.training.strategy import WorkerContext

    config = _build_config(**settings)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run")
        run.create(config.model_dump(mode="json"))
        loop = Loop(config, run, WorkerContext())
        try:
            with open_epoch_log(config, run, False) as log:
                yield None
                while True:
                    loop.finish_epoch(loop.train_epoch(), log)
                    yield None
        finally:
            loop.writer.wait()


def keras_fit(**settings: Any) -> Rounds:
    """Trains an epoch with `model.fit` on arrays in memory."""
    import keras
    import numpy as np

    config = _build_config(**settings)
    model, images, labels = _load_model_and_images(config)
    is_binary = model.output_shape[1] == 1
    loss = keras.losses.BinaryCrossentropy() if is_binary else keras.losses.SparseCategoricalCrossentropy()
    model.compile(keras.optimizers.RMSprop(LEARNING_RATE), loss, metrics=["accuracy"])
    images = images.astype(np.float32)
    yield None
    while True:
        model.fit(images, labels, batch_size=config.global_batch, epochs=1, verbose=0)
        yield None


def tutorial(model: str, folder: str, batch: int) -> Rounds:
    """Trains an epoch with `ImageDataGenerator.flow_from_directory`, `fit` and the published augmentation."""
    import keras
    from input_peers import ROTATION, SHEAR, SHIFT, ZOOM
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    from service.models import Task, build_model

    generator = ImageDataGenerator(
        rotation_range=ROTATION,
        width_shift_range=SHIFT,
        height_shift_range=SHIFT,
        shear_range=SHEAR,
        zoom_range=ZOOM,
        horizontal_flip=True,
        fill_mode="nearest",
    )
    flow = generator.flow_from_directory(
        folder, target_size=(150, 150), batch_size=batch, class_mode="binary", seed=0
    )
    keras_model = build_model(model, Task((150, 150, 3), 2, (120.0,) * 3, (60.0,) * 3))
    keras_model.compile(keras.optimizers.RMSprop(LEARNING_RATE), "binary_crossentropy", metrics=["accuracy"])
    yield None
    while True:
        keras_model.fit(flow, epochs=1, verbose=0)
        yield None


def workers(workers: int, scratch: str, **settings: Any) -> Rounds:
    """Trains a run with workers that share two cores; reports the seconds of its second epoch."""
    sys.path[1:1] = [str(TESTS.parent), str(TESTS)]  # the packages, then the helpers of the tests
    import training_samples

    available = [str(core) for core in sorted(os.sched_getaffinity(0))[:2]]
    cores_by_worker = [",".join(available)] if workers == 1 else available
    config = _build_config(**settings, epochs=2)
    number = 0
    yield None
    while True:
        number += 1
        run = training_samples.create_run(Path(scratch) / str(number), config)
        training_samples.train_in_processes([run.path], workers, cores=cores_by_worker)
        yield run.metrics()[1]["seconds"]
