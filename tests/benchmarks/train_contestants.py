"""Contestants of the training benchmark: the bare step, this project's loop, Keras' `fit`, the tutorials' way."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from worker import Rounds

TESTS = Path(__file__).resolve().parents[1]


def _config(model: str, shards: str, batch: int, data: dict[str, Any], **changes: Any) -> Any:
    from service.config import RunConfig

    settings = {
        "preset": "benchmark",
        "model": model,
        "shards": shards,
        "global_batch": batch,
        "data": {"cache": "host"} | data,
    }
    optimizer = {"name": "rmsprop", "learning_rate": 0.0001}
    return RunConfig.model_validate(settings | {"optimizer": optimizer, "epochs": 1000} | changes)


def _model_and_images(config: Any) -> tuple[Any, Any, Any]:
    """The network, all images uint8 `[rows, H, W, C]`, and their labels."""
    import numpy as np
    import tensorflow as tf

    from pipelines.input.cache import Cache
    from service.training.learner import build_network, open_splits

    train, _ = open_splits(config, Cache(tf.distribute.get_strategy()))
    images = np.concatenate([batch["image"] for batch in train.epoch(1)])[: train.rows]
    labels = np.concatenate([batch["label"] for batch in train.epoch(1)])[: train.rows]
    return build_network(config, tf.distribute.get_strategy(), train), images, labels


def bare(**settings: Any) -> Rounds:
    """Forward, backward and update of one batch again and again: written by hand, one compiled step a call."""
    import keras
    import tensorflow as tf

    from service.models.layers import build_logits_model
    from service.training.losses import example_losses

    config = _config(**settings)
    model, images, labels = _model_and_images(config)
    net, optimizer = build_logits_model(model), keras.optimizers.RMSprop(0.0001)
    optimizer.build(net.trainable_variables)
    pixels, label = tf.constant(images[: config.global_batch]), tf.constant(labels[: config.global_batch])

    @tf.function
    def step(pixels: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(example_losses(label, net(tf.cast(pixels, tf.float32), training=True)))
        weights = net.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in weights]), weights)
        return loss

    yield None
    while True:
        for _ in range(-(-len(images) // config.global_batch)):
            loss = step(pixels, label)
        float(loss)
        yield None


def ours(**settings: Any) -> Rounds:
    """An epoch of the loop as a worker runs it, with its checkpoint and its line of metrics."""
    from service.runs import Run
    from service.training.events import open_epoch_log
    from service.training.loop import Loop
    from service.training.strategy import WorkerContext

    config = _config(**settings)
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
    """`model.fit` on arrays in memory."""
    import keras
    import numpy as np

    config = _config(**settings)
    model, images, labels = _model_and_images(config)
    binary = model.output_shape[1] == 1
    loss = keras.losses.BinaryCrossentropy() if binary else keras.losses.SparseCategoricalCrossentropy()
    model.compile(keras.optimizers.RMSprop(0.0001), loss, metrics=["accuracy"])
    images = images.astype(np.float32)
    yield None
    while True:
        model.fit(images, labels, batch_size=config.global_batch, epochs=1, verbose=0)
        yield None


def tutorial(model: str, folder: str, batch: int) -> Rounds:
    """`ImageDataGenerator.flow_from_directory` and `fit`, with the published augmentation."""
    import keras
    from input_peers import ROTATION, SHEAR, SHIFT, ZOOM
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    from service.models import Task, build_model

    shifts = {"width_shift_range": SHIFT, "height_shift_range": SHIFT}
    made = ImageDataGenerator(
        rotation_range=ROTATION,
        shear_range=SHEAR,
        zoom_range=ZOOM,
        horizontal_flip=True,
        fill_mode="nearest",
        **shifts,
    )
    flow = made.flow_from_directory(
        folder, target_size=(150, 150), batch_size=batch, class_mode="binary", seed=0
    )
    net = build_model(model, Task((150, 150, 3), 2, (120.0,) * 3, (60.0,) * 3))
    net.compile(keras.optimizers.RMSprop(0.0001), "binary_crossentropy", metrics=["accuracy"])
    yield None
    while True:
        net.fit(flow, epochs=1, verbose=0)
        yield None


def workers(workers: int, scratch: str, **settings: Any) -> Rounds:
    """The second epoch of a run of some workers that share two cores evenly; each round starts them anew."""
    sys.path[1:1] = [str(TESTS.parent), str(TESTS)]  # the packages, then the helpers of the tests
    import training_samples

    cores = [str(core) for core in sorted(os.sched_getaffinity(0))[:2]]
    number = 0
    yield None
    while True:
        number += 1
        run = training_samples.new_run(Path(scratch) / str(number), _config(**settings, epochs=2))
        training_samples.train_elsewhere(
            [run.path], workers, cores=[",".join(cores)] if workers == 1 else cores
        )
        yield run.metrics()[1]["seconds"]
