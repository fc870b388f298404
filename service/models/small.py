"""Small models to try things out: one that trains in a minute on two CPU cores, and a linear baseline."""

from __future__ import annotations

import keras
from keras import layers

from service.models.base import Task
from service.models.layers import add_head, standardize


def _build_convolution(filters: int, size: int, name: str, strides: int = 1) -> layers.Conv2D:
    return layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding="same",
        activation="relu",
        kernel_initializer="he_normal",
        name=name,
    )


def small_cnn(task: Task) -> keras.Model:
    """Four convolutions and global average pooling, for images of 32x32 or more.

    No batch normalization: its statistics would make the result depend on the number of workers. The last
    feature map has an eighth of the image's side (8x8 for 64x64), enough for heatmaps to point at objects.

    Args:
        task: Shape, classes, and the channel means and deviations that images are standardized with.

    Returns:
        A model from `[B, H, W, C]`, 0 to 255, to the probabilities that `add_head` gives.
    """
    image = keras.Input(task.shape, name="image")
    x = standardize(image, task)
    # The first stride of 2 saves most of the time.
    x = _build_convolution(16, 5, "conv1", strides=2)(x)  # [B, H/2, W/2, 16]
    x = _build_convolution(32, 3, "conv2")(x)
    x = layers.MaxPooling2D(name="pool2")(x)  # [B, H/4, W/4, 32]
    x = _build_convolution(48, 3, "conv3")(x)
    x = layers.MaxPooling2D(name="pool3")(x)  # [B, H/8, W/8, 48]
    x = _build_convolution(64, 3, "conv4")(x)  # [B, H/8, W/8, 64]
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    return keras.Model(image, add_head(x, task.classes), name="small_cnn")


def linear(task: Task) -> keras.Model:
    """One weight per pixel and class: a baseline that fails if objects can be anywhere in an image.

    Args:
        task: Shape, classes, and the channel means and deviations that images are standardized with.

    Returns:
        A model from `[B, H, W, C]`, 0 to 255, to the probabilities that `add_head` gives.
    """
    image = keras.Input(task.shape, name="image")
    x = layers.Flatten(name="pixels")(standardize(image, task))
    return keras.Model(image, add_head(x, task.classes), name="linear")
