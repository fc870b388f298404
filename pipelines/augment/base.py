"""Base classes of all augmentations, those of this package and those that users write."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.augment.colour import ColourMap, precompose_matrices
from pipelines.augment.geometry import Transform
from pipelines.augment.philox import Floats
from pipelines.settings import Spec


class ImageShape(NamedTuple):
    """Height and width in pixels, and number of channels, of the images that are augmented."""

    height: int
    width: int
    channels: int

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.width / self.height


@dataclass(frozen=True)
class RandomNumbers:
    """The random numbers that an augmentation draws from, for a batch of n images.

    Attributes:
        values: float64 `[K, n]` in [0, 1).
        streams: Name of each number that the augmentation uses, and its index among the K.
        is_active: bool `[n]`; False for padding, and for images that another augmentation mixes.
    """

    values: Floats
    streams: Mapping[str, int]
    is_active: NDArray[np.bool_]

    def uniform(self, stream: str) -> Floats:
        """Returns one number per image, `[n]` in [0, 1)."""
        return np.asarray(self.values[self.streams[stream]])

    def symmetric(self, stream: str) -> Floats:
        """Returns one number per image, `[n]` in [-1, 1); 0 for inactive images."""
        return np.where(self.is_active, 2.0 * self.uniform(stream) - 1.0, 0.0)


@dataclass(frozen=True)
class Fact:
    """One drawn parameter as text, for the preview page.

    Attributes:
        name: Name of the augmentation on the page.
        value: Drawn value with its unit, or `no` if the image is left unchanged.
        of_neighbour: Whether the value is the neighbour's share in a mixed image.
    """

    name: str
    value: str
    of_neighbour: bool = False


class Augmentation(ABC):
    """One random change of training images: its settings, how it is drawn and how it is described.

    Derive from `GeometricAugmentation`, `ColourAugmentation`, `PixelAugmentation` or `MixingAugmentation`.
    Images are changed in this order: geometry (one warp), colour (one linear map), pixels, mixing.

    Attributes:
        name: Names the augmentation on pages and in batches, and selects the random numbers of one that is
            not part of this package; the name of the class unless it is set.
        Settings: Its fields of `AugmentSpec`, with default, range and description.
        streams: Names of the random numbers it draws, each with its index. Those of this package share one
            sequence, so an index in use must never change meaning; every other one has a separate sequence.
        channels: Numbers of channels of the images it applies to.
        settings: Values of `Settings`; within this package the whole `AugmentSpec`.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[Spec]] = Spec
    streams: ClassVar[Mapping[str, int]] = {}
    channels: ClassVar[tuple[int, ...]] = (1, 3)
    settings: Any

    def __init_subclass__(cls) -> None:
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def is_on(self) -> bool:
        """Tells whether the settings let it change any image."""
        return True

    @abstractmethod
    def draw(self, numbers: RandomNumbers, image: ImageShape) -> Any:
        """Draws the parameters of n images. Must be a pure function.

        Args:
            numbers: Random numbers of these images. Nothing may happen to inactive ones.
            image: Size and channels of the images.

        Returns:
            An array `[n, ...]`, or a tuple of them.
        """

    def describe(self, values: Any, index: int) -> Fact | None:
        """Describes what was drawn for one image.

        Args:
            values: What `draw` returned.
            index: Position of the image in the batch.

        Returns:
            The fact to show, or None if there is nothing to show.
        """
        parts = values if isinstance(values, tuple) else (values,)
        texts = [np.array2string(np.asarray(part)[index], precision=3) for part in parts]
        return Fact(self.name, ", ".join(texts))


class GeometricAugmentation(Augmentation):
    """An affine map of the image. All of them are composed into one matrix, and applied by one warp.

    Attributes:
        in_unit_square: Whether `transform` returns a map of the unit square, x to the right and y down. Such
            maps select the part of the image that all other maps apply to. False for a map about the center,
            in units of the height.
    """

    in_unit_square: ClassVar[bool] = False

    @abstractmethod
    def transform(self, values: Any, image: ImageShape) -> Transform:
        """Returns the maps from the position of an output pixel to the position in the input that it shows.

        Args:
            values: What `draw` returned.
            image: Size and channels of the images.
        """


class ColourAugmentation(Augmentation):
    """A linear map of the channels. All of them are composed into one matrix, and applied in one pass.

    Implement `matrices`, or `precompose` if the structure of the map saves computation or rounding.
    """

    def matrices(self, values: Any, image: ImageShape) -> Floats:
        """Returns the maps of n images: `colour = matrix @ (*colour, 1)`, in values of 0 to 255.

        Args:
            values: What `draw` returned.
            image: Size and channels of the images.

        Returns:
            float64 `[n, C, C + 1]`.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method matrices or precompose")

    def precompose(self, after: ColourMap, values: Any, image: ImageShape) -> ColourMap:
        """Returns the map that first does this change, then another.

        Args:
            after: Map of the changes that follow this one.
            values: What `draw` returned.
            image: Size and channels of the images.
        """
        return precompose_matrices(after, self.matrices(values, image))


class PixelAugmentation(Augmentation):
    """Any other change of single images, applied after geometry and colour.

    `draw` returns float32 `[n, *shape]`.

    Attributes:
        shape: Shape of the parameters of one image.
        is_compiled: Whether XLA compiles `apply`, together with the passes before and after it.
    """

    shape: ClassVar[tuple[int, ...]] = ()
    is_compiled: ClassVar[bool] = False

    @property
    def key(self) -> str:
        """Name of the parameters in a batch."""
        return self.name

    @abstractmethod
    def apply(self, images: Any, parameters: Any) -> Any:
        """Changes the images of a batch, in TensorFlow.

        Args:
            images: float32 `[B, H, W, C]` in 0 to 255, not rounded.
            parameters: float32 `[B, *shape]`, as drawn.

        Returns:
            The changed images, of the same shape and dtype.
        """


class MixingAugmentation(Augmentation):
    """A mixture of every image with its neighbour in the batch, applied last.

    If several are on, each image is mixed by one of them, chosen with equal probability: for all others it
    is inactive. `draw` returns float32 `[n, *shape]`.

    Attributes:
        key: Name of the parameters in a batch.
        shape: Shape of the parameters of one image.
        is_compiled: Whether XLA compiles `mix`, together with the pass before it.
    """

    key: ClassVar[str]
    shape: ClassVar[tuple[int, ...]] = ()
    is_compiled: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "key" not in cls.__dict__:
            cls.key = cls.name

    @abstractmethod
    def mix(self, images: Any, neighbours: Any, parameters: Any) -> tuple[Any, Any]:
        """Mixes the images of a batch with their neighbours, in TensorFlow.

        Args:
            images: float32 `[B, H, W, C]` in 0 to 255, after all other changes.
            neighbours: The image that each is mixed with, `[B, H, W, C]`, not mixed itself.
            parameters: float32 `[B, *shape]`, as drawn.

        Returns:
            The mixed images, and the share of each image itself in the mixture, float32 `[B]`.
        """

    def describe_share(self, share: float) -> Fact:
        """Describes how much of an image is its neighbour's.

        Args:
            share: Share of the image itself, 0 to 1.
        """
        if share == 1.0:
            return Fact(self.name, "no")
        return Fact(self.name, f"{1.0 - share:.0%}", of_neighbour=True)


def format_signed(value: float, unit: str) -> str:
    """Formats a difference with its sign and one decimal, such as `+4.1%`."""
    text = f"{abs(value):.1f}"
    if float(text) == 0:
        return text + unit
    return ("+" if value > 0 else "\N{MINUS SIGN}") + text + unit
