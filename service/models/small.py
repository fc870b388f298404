"""Small models for trying things out: a network that trains in a minute on two CPU cores, and its linear baseline."""

from __future__ import annotations

import keras
from keras import layers

from service.models import MODELS, Task, head, standardized


def _convolution(filters: int, size: int, name: str, strides: int = 1) -> layers.Conv2D:
    return layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding="same",
        activation="relu",
        kernel_initializer="he_normal",
        name=name,
    )


@MODELS.register("small_cnn")
def small_cnn(task: Task) -> keras.Model:
    """Four convolutions and an average over the picture, for images from 32x32 up.

    No batch normalization: its statistics would make the result depend on the number of workers. The last feature
    map keeps an eighth of the image's side (8x8 for 64x64), enough for heatmaps to point at things.

    Args:
        task: Shape, classes, and the channel means and deviations that the images are standardized with.

    Returns:
        A model from `[B, H, W, C]` in 0 to 255 to probabilities, as `head` makes them.
    """
    image = keras.Input(task.shape, name="image")
    x = standardized(image, task)
    x = _convolution(16, 5, "conv1", strides=2)(
        x
    )  # [B, H/2, W/2, 16]: halves at once, which saves most of the time
    x = layers.MaxPooling2D(name="pool2")(_convolution(32, 3, "conv2")(x))  # [B, H/4, W/4, 32]
    x = layers.MaxPooling2D(name="pool3")(_convolution(48, 3, "conv3")(x))  # [B, H/8, W/8, 48]
    x = _convolution(64, 3, "conv4")(x)  # [B, H/8, W/8, 64]
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    return keras.Model(image, head(x, task.classes), name="small_cnn")


@MODELS.register("linear")
def linear(task: Task) -> keras.Model:
    """One weight per pixel and class: the baseline that must fail where a picture has to be understood.

    Args:
        task: Shape, classes, and the channel means and deviations that the images are standardized with.

    Returns:
        A model from `[B, H, W, C]` in 0 to 255 to probabilities, as `head` makes them.
    """
    image = keras.Input(task.shape, name="image")
    x = layers.Flatten(name="pixels")(standardized(image, task))
    return keras.Model(image, head(x, task.classes), name="linear")
