"""Models by name, one family per file. Every model ends in a `logits` layer and a `probabilities` layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras

from pipelines.errors import ConfigError
from pipelines.registry import Registry


@dataclass(frozen=True)
class Task:
    """What a model is built for.

    Attributes:
        shape: Height, width and channels of the images, which arrive as 0 to 255.
        classes: Number of classes, 2 or more.
        mean: Mean per channel over the training images, 0 to 255.
        std: Standard deviation per channel of the same.
    """

    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


MODELS: Registry[Callable[[Task], keras.Model]] = Registry("model")


def builder_of(name: str) -> Callable[[Task], keras.Model]:
    """What builds a registered model.

    Raises:
        ConfigError: There is no such model.
    """
    from service.models import bases, cats_dogs, digits, residual, small  # noqa: F401 (importing registers them)

    return MODELS.get(name)


def build_model(name: str, task: Task) -> keras.Model:
    """Builds a registered model with fresh weights.

    Raises:
        ConfigError: There is no such model, or the images are too small for it.
    """
    build = builder_of(name)
    try:
        return build(task)
    except ValueError as error:  # Keras, where a convolution has no pixel left
        if "dimension" not in str(error).lower() and "size" not in str(error).lower():
            raise
        size = "x".join(map(str, task.shape[:2]))
        raise ConfigError(
            f"images large enough for the model {name}", f"data.image_size={size}", "raise data.image_size"
        ) from None


def standardized(image: keras.KerasTensor, task: Task) -> keras.KerasTensor:
    """Images with mean 0 and deviation 1 in every channel over the training images, float32 whatever the precision."""
    variance = [max(std, 1.0) ** 2 for std in task.std]  # a channel that is the same everywhere stays 0
    return keras.layers.Normalization(
        mean=task.mean, variance=variance, dtype="float32", name="standardized"
    )(image)


def head(features: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """Adds the classifier: one sigmoid unit for two classes, else one softmax unit per class; float32 whatever the precision.

    Args:
        features: `[B, F]`.
        classes: Number of classes.

    Returns:
        Probabilities in float32, `[B, 1]` (of class 1) or `[B, classes]`.
    """
    logits = keras.layers.Dense(1 if classes == 2 else classes, dtype="float32", name="logits")(features)
    activation = "sigmoid" if classes == 2 else "softmax"
    return keras.layers.Activation(activation, dtype="float32", name="probabilities")(logits)


def logits_of(model: keras.Model) -> keras.Model:
    """The same network, weights shared, ending before its `probabilities` layer."""
    return keras.Model(model.input, model.get_layer("logits").output, name=f"{model.name}_logits")


def resized(net: keras.Model, size: tuple[int, int]) -> keras.Model:
    """The same network, weights shared, for images of another size.

    Args:
        net: From images `[B, H, W, C]`.
        size: Height and width.

    Raises:
        ConfigError: Its layers do not fit that size.
    """
    image = keras.Input((*size, net.input.shape[-1]), name=net.input.name)
    try:
        return keras.models.clone_model(net, image, clone_function=lambda layer: layer)
    except ValueError:
        fix = "leave it out, or raise it; a model that flattens what it sees of an image takes no other size than data.image_size"
        raise ConfigError(
            "a model that takes images of that size too", f"augment.size={list(size)}", fix
        ) from None
