"""The two networks of the published digit experiments."""

from __future__ import annotations

import keras
from keras import layers

from service.models.base import Task
from service.models.layers import add_head


def mnist_mlp(task: Task) -> keras.Model:
    """784-128-128-10 on inputs standardized by the training set: 118,282 parameters."""
    inputs = keras.Input(task.shape, name="image")
    variance = [max(std, 1e-3) ** 2 for std in task.std]
    # The name of this layer is in saved models.
    x = layers.Normalization(mean=task.mean, variance=variance, dtype="float32", name="standardise")(inputs)
    x = layers.Flatten()(x)
    x = layers.Dense(128, activation="relu")(x)
    x = layers.Dense(128, activation="relu")(x)
    return keras.Model(inputs, add_head(x, task.classes), name="mnist_mlp")


def mnist_cnn(task: Task) -> keras.Model:
    """Three 3x3 convolutions (32, 64, 64), two pools, one dense layer of 64: 93,322 parameters."""
    inputs = keras.Input(task.shape, name="image")
    x = layers.Rescaling(1 / 255, dtype="float32")(inputs)
    x = layers.Conv2D(32, 3, activation="relu")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(64, 3, activation="relu")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(64, 3, activation="relu")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(64, activation="relu")(x)
    return keras.Model(inputs, add_head(x, task.classes), name="mnist_cnn")
