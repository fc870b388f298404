"""`Task`, the images and classes that a model is built for, and the registry of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.registry import Registry
from service.pretrained import KERAS_SUFFIX

if TYPE_CHECKING:
    import keras

Builder = Callable[..., "keras.Model"]  # takes a Task, and a model of this package further options
ModelOption = bool | int | float | str


@dataclass(frozen=True)
class Task:
    """Images and classes that a model is built for.

    Attributes:
        shape: Height, width and channels of the images; pixels are float32, 0 to 255.
        classes: Number of classes, 2 or more.
        mean: Mean of each channel over the training images, 0 to 255.
        std: Standard deviation of each channel over the training images.
    """

    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


MODELS: Registry[Builder] = Registry("model", group="glassbox.models")


def is_saved_model(name: str) -> bool:
    """Tells whether a model is named by a `.keras` file."""
    return name.endswith(KERAS_SUFFIX)
