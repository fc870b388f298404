"""Small models for training tests, each with a property that implementations easily get wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import keras
import numpy as np
from keras import layers

from service.models import MODELS, Task
from service.models.layers import add_head


def _pixels(task: Task) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    image = keras.Input(task.shape)
    return image, layers.Rescaling(1 / 255, dtype="float32")(image)


def build_replicas(task: Task) -> keras.Model:
    """Builds a model of what differs between replicas: dropout and batch normalization of every pixel."""
    image, x = _pixels(task)
    dropped = layers.Dropout(0.5)(layers.Flatten()(x))
    normalized = layers.Flatten()(layers.BatchNormalization()(x))
    features = layers.Concatenate()([dropped, normalized])
    return keras.Model(image, add_head(features, task.classes))


def build_normalized(task: Task) -> keras.Model:
    """Builds a model with batch normalization of the pixels and of a hidden layer."""
    image, x = _pixels(task)
    x = layers.Flatten()(layers.BatchNormalization(name="of_pixels")(x))
    x = layers.BatchNormalization(name="of_hidden")(layers.Dense(8, name="hidden")(x))
    return keras.Model(image, add_head(x, task.classes))


def build_forgetful(task: Task) -> keras.Model:
    """Builds a model with all the state that a checkpoint must restore: batch normalization and dropout."""
    image, x = _pixels(task)
    x = layers.Dropout(0.3)(layers.Flatten()(x))
    x = layers.Dense(8, name="hidden")(x)
    x = layers.Dropout(0.5)(layers.BatchNormalization()(x))
    return keras.Model(image, add_head(x, task.classes))


def build_two_layers(task: Task) -> keras.Model:
    """Builds a model with a hidden layer, to be frozen or computed in half precision."""
    image, x = _pixels(task)
    x = layers.Dense(8, activation="relu", name="hidden")(layers.Flatten()(x))
    return keras.Model(image, add_head(x, task.classes))


def build_pooled(task: Task) -> keras.Model:
    """Builds a model of a convolution and global pooling, for images of any size."""
    image, x = _pixels(task)
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="hidden")(x)
    return keras.Model(image, add_head(layers.GlobalAveragePooling2D()(x), task.classes))


@keras.saving.register_keras_serializable("tests")
class Fragile(layers.Layer):
    """Returns NaN for an image whose pixels are all white."""

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        white = keras.ops.all(x > 0.999, axis=-1, keepdims=True)
        return keras.ops.where(white, np.nan, x)


def build_fragile(task: Task) -> keras.Model:
    """Builds a model that returns NaN for a white image.

    It has no ReLU, which on some processors turns NaN into 0.
    """
    image, x = _pixels(task)
    x = layers.Dense(8, name="hidden")(Fragile()(layers.Flatten()(x)))
    return keras.Model(image, add_head(x, task.classes))


BUILDERS = (
    build_replicas,
    build_normalized,
    build_forgetful,
    build_two_layers,
    build_fragile,
    build_pooled,
)
TINY: dict[str, Callable[[Task], keras.Model]] = {
    build.__name__.replace("build_", "tiny_"): build for build in BUILDERS
}


@contextmanager
def register_tiny_models() -> Iterator[None]:
    """Registers the models within a block; nested blocks keep them until the outer one ends."""
    missing = TINY.keys() - MODELS._items.keys()
    for name in missing:
        MODELS.register(name)(TINY[name])
    try:
        yield
    finally:
        for name in missing:
            del MODELS._items[name]
