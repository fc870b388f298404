"""Small residual networks (He et al., 2016), trained from scratch on few images."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers

from service.models.base import Task
from service.models.layers import add_head, standardize

# Momentum of batch normalization: lower than the 0.99 of Keras, for runs with few updates.
MOMENTUM = 0.9


def _add_convolution(
    x: keras.KerasTensor, filters: int, size: int, name: str, strides: int = 1, gamma: str = "ones"
) -> keras.KerasTensor:
    """Adds a convolution without bias, and batch normalization."""
    convolution = layers.Conv2D(
        filters, size, strides, "same", use_bias=False, kernel_initializer="he_normal", name=name
    )
    normalization = layers.BatchNormalization(momentum=MOMENTUM, gamma_initializer=gamma, name=f"{name}_norm")
    return normalization(convolution(x))


def _add_excitation(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Adds squeeze-and-excitation: scales channels by weights from all channel means (Hu et al., 2018)."""
    channels = x.shape[-1]
    weights = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)  # [B, 1, 1, C]
    weights = layers.Conv2D(channels // 8, 1, activation="relu", name=f"{name}_reduce")(weights)
    weights = layers.Conv2D(channels, 1, activation="sigmoid", name=f"{name}_excite")(weights)
    return layers.Multiply(name=f"{name}_weighed")([x, weights])


def _add_block(x: keras.KerasTensor, filters: int, name: str, strides: int = 1) -> keras.KerasTensor:
    """Adds two convolutions in parallel with a shortcut.

    A shortcut with stride is average-pooled first (He et al., 2019). The last gamma starts at zero, so that
    the block starts as the identity (Goyal et al., 2017).
    """
    y = _add_convolution(x, filters, 3, f"{name}_conv1", strides)
    y = layers.ReLU(name=f"{name}_relu1")(y)
    y = _add_convolution(y, filters, 3, f"{name}_conv2", gamma="zeros")
    y = _add_excitation(y, name)

    if strides > 1:
        x = layers.AveragePooling2D(strides, padding="same", name=f"{name}_pool")(x)
    if x.shape[-1] != filters:
        x = _add_convolution(x, filters, 1, f"{name}_shortcut")
    return layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_sum")([x, y]))


def _build_residual(
    task: Task, name: str, strides: int, stages: Sequence[tuple[int, int]], dropout: float
) -> keras.Model:
    """Builds a 5x5 stem, then stages of (filters, blocks), each at half the size of the one before."""
    image = keras.Input(task.shape, name="image")
    x = _add_convolution(standardize(image, task), 32, 5, "stem", strides)
    x = layers.ReLU(name="stem_relu")(x)
    x = layers.MaxPooling2D(3, strides=2, padding="same", name="stem_pool")(x)
    for stage, (filters, blocks) in enumerate(stages):
        for block in range(blocks):
            shrinks = stage > 0 and block == 0
            x = _add_block(x, filters, f"stage{stage + 1}_block{block + 1}", strides=2 if shrinks else 1)
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(image, add_head(x, task.classes), name=name)


def cats_dogs_best(task: Task) -> keras.Model:
    """For photos of about 112x112: six blocks, 28x28x64 to 4x4x256; 277 million multiplications per image."""
    stages = ((64, 1), (128, 2), (256, 2), (256, 1))
    return _build_residual(task, "cats_dogs_best", 2, stages, dropout=0.3)


def mnist_best(task: Task) -> keras.Model:
    """For digits of 28x28: two blocks, 14x14x64 and 7x7x128; 22 million multiplications per image."""
    return _build_residual(task, "mnist_best", 1, ((64, 1), (128, 1)), dropout=0.3)
