"""Networks for tests of the training, each with one thing that is easily done wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import keras
import numpy as np
from keras import layers

from service.models import MODELS, Task, head


def _pixels(task: Task) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    image = keras.Input(task.shape)
    return image, layers.Rescaling(1 / 255, dtype="float32")(image)


def replicas(task: Task) -> keras.Model:
    """What replicas do not share: one weight for each pixel, half of them dropped, and one for each that was normalized."""
    image, x = _pixels(task)
    dropped = layers.Dropout(0.5)(layers.Flatten()(x))
    return keras.Model(
        image,
        head(layers.Concatenate()([dropped, layers.Flatten()(layers.BatchNormalization()(x))]), task.classes),
    )


def normalized(task: Task) -> keras.Model:
    """Batch normalization of the pixels themselves, and of a hidden layer."""
    image, x = _pixels(task)
    x = layers.Flatten()(layers.BatchNormalization(name="of_pixels")(x))
    x = layers.BatchNormalization(name="of_hidden")(layers.Dense(8, name="hidden")(x))
    return keras.Model(image, head(x, task.classes))


def forgetful(task: Task) -> keras.Model:
    """All that a restore has to bring back: batch normalization, and dropout in two layers."""
    image, x = _pixels(task)
    x = layers.BatchNormalization()(layers.Dense(8, name="hidden")(layers.Dropout(0.3)(layers.Flatten()(x))))
    return keras.Model(image, head(layers.Dropout(0.5)(x), task.classes))


def two_layers(task: Task) -> keras.Model:
    """A hidden layer, to be frozen, and to be computed in halves."""
    image, x = _pixels(task)
    x = layers.Dense(8, activation="relu", name="hidden")(layers.Flatten()(x))
    return keras.Model(image, head(x, task.classes))


def pooled(task: Task) -> keras.Model:
    """A convolution and its mean over the image, whatever its size."""
    image, x = _pixels(task)
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="hidden")(x)
    return keras.Model(image, head(layers.GlobalAveragePooling2D()(x), task.classes))


@keras.saving.register_keras_serializable("tests")
class Fragile(layers.Layer):
    """Answers an image that is white all over with what is not a number."""

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        white = keras.ops.all(x > 0.999, axis=-1, keepdims=True)
        return keras.ops.where(white, np.nan, x)


def fragile(task: Task) -> keras.Model:
    """A hidden layer, and no answer for a white image: without a ReLU, which on some processors makes 0 of what is not a number."""
    image, x = _pixels(task)
    x = layers.Dense(8, name="hidden")(Fragile()(layers.Flatten()(x)))
    return keras.Model(image, head(x, task.classes))


TINY: dict[str, Callable[[Task], keras.Model]] = {
    f"tiny_{build.__name__}": build
    for build in (replicas, normalized, forgetful, two_layers, fragile, pooled)
}


@contextmanager
def registered() -> Iterator[None]:
    """Registers them for the length of a block, and leaves them to the outer one where blocks are nested."""
    missing = TINY.keys() - MODELS._items.keys()
    for name in missing:
        MODELS.register(name)(TINY[name])
    try:
        yield
    finally:
        for name in missing:
            del MODELS._items[name]
