"""Flips: mirror images, left to right and top to bottom."""

from __future__ import annotations

from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import override

from pipelines.augment.base import Fact, GeometricAugmentation, ImageShape, RandomNumbers
from pipelines.augment.geometry import IDENTITY, Transform
from pipelines.settings import Spec


class Mirrored(NamedTuple):
    """Whether each of n images is mirrored left to right and top to bottom, bool `[n]` each."""

    horizontally: NDArray[np.bool_]
    vertically: NDArray[np.bool_]


class Flips(GeometricAugmentation):
    """Mirrors an image with probability 1/2, along each axis that is turned on."""

    class Settings(Spec):
        """Axes along which images are mirrored."""

        flip: Annotated[
            bool,
            Field(description="Whether every second image is mirrored left to right."),
        ] = False
        flip_vertical: Annotated[
            bool,
            Field(description="Whether every second image is mirrored top to bottom."),
        ] = False

    name = "flip"
    streams: ClassVar = {"horizontal": 6, "vertical": 7}
    settings: Settings

    @override
    def is_on(self) -> bool:
        return self.settings.flip or self.settings.flip_vertical

    @override
    def draw(self, numbers: RandomNumbers, image: ImageShape) -> Mirrored:
        horizontally = numbers.is_active & self.settings.flip & (numbers.uniform("horizontal") < 0.5)
        vertically = numbers.is_active & self.settings.flip_vertical & (numbers.uniform("vertical") < 0.5)
        return Mirrored(horizontally, vertically)

    @override
    def transform(self, values: Mirrored, image: ImageShape) -> Transform:
        x = np.where(values.horizontally, -1.0, 1.0)
        y = np.where(values.vertically, -1.0, 1.0)
        return IDENTITY._replace(a=x, e=y)

    @override
    def describe(self, values: Mirrored, index: int) -> Fact:
        sides = []
        if values.horizontally[index]:
            sides.append("left\N{EN DASH}right")
        if values.vertically[index]:
            sides.append("top\N{EN DASH}bottom")
        return Fact(self.name, ", ".join(sides) or "no")
