"""Small residual networks (He et al., 2016) that are trained from nothing, with what helps where images are few."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers

from service.models import MODELS, Task, head, standardized

FORGETTING = 0.9  # batch normalization, per update: a run has some thousand


def _normalized(
    x: keras.KerasTensor, filters: int, size: int, name: str, strides: int = 1, gamma: str = "ones"
) -> keras.KerasTensor:
    x = layers.Conv2D(
        filters, size, strides, "same", use_bias=False, kernel_initializer="he_normal", name=name
    )(x)
    return layers.BatchNormalization(momentum=FORGETTING, gamma_initializer=gamma, name=f"{name}_norm")(x)


def _excited(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Weighs every channel by what the whole picture says of it (Hu et al., 2018)."""
    channels = x.shape[-1]
    weights = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)  # [B, 1, 1, C]
    weights = layers.Conv2D(channels // 8, 1, activation="relu", name=f"{name}_reduce")(weights)
    weights = layers.Conv2D(channels, 1, activation="sigmoid", name=f"{name}_excite")(weights)
    return layers.Multiply(name=f"{name}_weighed")([x, weights])


def _block(x: keras.KerasTensor, filters: int, name: str, strides: int = 1) -> keras.KerasTensor:
    """Two convolutions beside a shortcut that averages where it shrinks (He et al., 2019); first they add nothing (Goyal et al., 2017)."""
    y = layers.ReLU(name=f"{name}_relu1")(_normalized(x, filters, 3, f"{name}_conv1", strides))
    y = _excited(_normalized(y, filters, 3, f"{name}_conv2", gamma="zeros"), name)
    if strides > 1:
        x = layers.AveragePooling2D(strides, padding="same", name=f"{name}_pool")(x)
    if x.shape[-1] != filters:
        x = _normalized(x, filters, 1, f"{name}_shortcut")
    return layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_sum")([x, y]))


def _residual(
    task: Task, name: str, strides: int, stages: Sequence[tuple[int, int]], dropout: float
) -> keras.Model:
    """A stem of 5x5, then stages of (filters, blocks), each at half the size of the one before."""
    image = keras.Input(task.shape, name="image")
    x = layers.ReLU(name="stem_relu")(_normalized(standardized(image, task), 32, 5, "stem", strides))
    x = layers.MaxPooling2D(3, strides=2, padding="same", name="stem_pool")(x)
    for stage, (filters, blocks) in enumerate(stages):
        for block in range(blocks):
            x = _block(
                x, filters, f"stage{stage + 1}_block{block + 1}", strides=2 if stage and not block else 1
            )
    x = layers.Dropout(dropout, name="dropout")(layers.GlobalAveragePooling2D(name="pooled")(x))
    return keras.Model(image, head(x, task.classes), name=name)


@MODELS.register("cats_dogs_best")
def cats_dogs_best(task: Task) -> keras.Model:
    """For photos of about 112x112: six blocks from 28x28x64 to 4x4x256; 277 million multiplications an image."""
    return _residual(task, "cats_dogs_best", 2, ((64, 1), (128, 2), (256, 2), (256, 1)), 0.3)


@MODELS.register("mnist_best")
def mnist_best(task: Task) -> keras.Model:
    """For digits of 28x28: two blocks, 14x14x64 and 7x7x128; 22 million multiplications an image."""
    return _residual(task, "mnist_best", 1, ((64, 1), (128, 1)), 0.3)
