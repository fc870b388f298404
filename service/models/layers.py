"""Layers that the models of this package share: standardization of the input, and the head."""

from __future__ import annotations

import keras

from pipelines.errors import ConfigError
from service.models.base import Task

LOGITS = "logits"
PROBABILITIES = "probabilities"


def standardize(image: keras.KerasTensor, task: Task) -> keras.KerasTensor:
    """Adds a layer that gives every channel mean 0 and deviation 1 over the training images.

    Args:
        image: `[B, H, W, C]`, pixels 0 to 255.
        task: Means and deviations of the channels.

    Returns:
        `[B, H, W, C]`, float32 under any precision policy.
    """
    variance = [max(std, 1.0) ** 2 for std in task.std]  # a channel that is the same everywhere stays 0
    layer = keras.layers.Normalization(
        mean=task.mean, variance=variance, dtype="float32", name="standardized"
    )
    return layer(image)


def add_head(
    features: keras.KerasTensor, classes: int, initializer: keras.Initializer | str = "glorot_uniform"
) -> keras.KerasTensor:
    """Adds the classifier: one sigmoid unit for two classes, else one softmax unit per class.

    Args:
        features: Feature vectors `[B, F]`.
        classes: Number of classes.
        initializer: Distribution of the initial weights.

    Returns:
        Probabilities, float32 under any precision policy: `[B, 1]` (of class 1) or `[B, classes]`.
    """
    units = 1 if classes == 2 else classes
    logits = keras.layers.Dense(units, dtype="float32", kernel_initializer=initializer, name=LOGITS)(features)
    return add_probabilities(logits)


def add_probabilities(logits: keras.KerasTensor) -> keras.KerasTensor:
    """Adds the last layer: a sigmoid of one logit, or a softmax over several.

    Args:
        logits: `[B, 1]` or `[B, classes]`.

    Returns:
        float32 of the same shape.
    """
    activation = "sigmoid" if logits.shape[-1] == 1 else "softmax"
    return keras.layers.Activation(activation, dtype="float32", name=PROBABILITIES)(logits)


def build_logits_model(model: keras.Model) -> keras.Model:
    """Returns a model with shared weights that ends in the logits, before the `probabilities` layer."""
    return keras.Model(model.input, model.get_layer(LOGITS).output, name=f"{model.name}_logits")


def resize_input(model: keras.Model, size: tuple[int, int]) -> keras.Model:
    """Returns a model with shared weights for images of another size.

    Args:
        model: Model of images `[B, H, W, C]`.
        size: New height and width in pixels.

    Raises:
        ConfigError: The layers do not fit that size.
    """
    image = keras.Input((*size, model.input.shape[-1]), name=model.input.name)
    try:
        return keras.models.clone_model(model, image, clone_function=lambda layer: layer)
    except ValueError:
        fix = (
            "leave it out, or raise it; a model that flattens its feature maps takes no other size "
            "than data.image_size"
        )
        raise ConfigError(
            "a model that takes images of that size too", f"augment.size={list(size)}", fix
        ) from None
