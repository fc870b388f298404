"""The networks of the published cats-and-dogs experiments, each with and without dropout."""

from __future__ import annotations

import keras
from keras import layers

from service.models.base import Task
from service.models.layers import add_head


def _build_lecture(task: Task, name: str, dropout: bool) -> keras.Model:
    inputs = keras.Input(task.shape, name="image")
    x = layers.Rescaling(1 / 255, dtype="float32")(inputs)
    for filters in (16, 32, 64):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)
        if dropout and filters in (16, 64):
            x = layers.Dropout(0.3)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(512, activation="relu")(x)
    if dropout:
        x = layers.Dropout(0.1)(x)
    return keras.Model(inputs, add_head(x, task.classes), name=name)


def _build_small(task: Task, name: str, dropout: bool) -> keras.Model:
    inputs = keras.Input(task.shape, name="image")
    x = layers.Rescaling(1 / 255, dtype="float32")(inputs)
    for filters in (32, 64, 128, 128):
        x = layers.Conv2D(filters, 3, activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(x)
    if dropout:
        x = layers.Dropout(0.5)(x)
    x = layers.Dense(512, activation="relu")(x)
    return keras.Model(inputs, add_head(x, task.classes), name=name)


def cats_dogs_lecture(task: Task) -> keras.Model:
    """Three 'same' convolutions (16, 32, 64) with pools, dense 512: 10,641,441 parameters at 150x150."""
    return _build_lecture(task, "cats_dogs_lecture", dropout=False)


def cats_dogs_lecture_dropout(task: Task) -> keras.Model:
    """`cats_dogs_lecture` with dropout: 0.3 after the first and the last pool, 0.1 after the dense layer."""
    return _build_lecture(task, "cats_dogs_lecture_dropout", dropout=True)


def cats_dogs_small(task: Task) -> keras.Model:
    """Four 'valid' convolutions (32, 64, 128, 128) with pools, dense 512: 3,453,121 parameters at 150x150."""
    return _build_small(task, "cats_dogs_small", dropout=False)


def cats_dogs_small_dropout(task: Task) -> keras.Model:
    """`cats_dogs_small` with dropout 0.5 before the dense layers."""
    return _build_small(task, "cats_dogs_small_dropout", dropout=True)
