"""Shear: tilts the vertical lines of an image."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from typing_extensions import override

from pipelines.augment.base import Fact, GeometricAugmentation, ImageShape, RandomNumbers, format_signed
from pipelines.augment.geometry import IDENTITY, Transform
from pipelines.augment.philox import Floats
from pipelines.settings import Spec


class Shear(GeometricAugmentation):
    """Shears an image by an angle in degrees, uniform and symmetric, as Keras' `ImageDataGenerator` does.

    Drawn: the angle, `[n]`.
    """

    class Settings(Spec):
        """Range of the angle."""

        shear: Annotated[
            float,
            Field(ge=0.0, lt=90.0, strict=True, description="Largest shear angle in degrees, either way."),
        ] = 0.0

    name = "shear"
    streams: ClassVar = {"angle": 3}
    settings: Settings

    @override
    def is_on(self) -> bool:
        return self.settings.shear > 0

    @override
    def draw(self, numbers: RandomNumbers, image: ImageShape) -> Floats:
        return self.settings.shear * numbers.symmetric("angle")

    @override
    def transform(self, values: Floats, image: ImageShape) -> Transform:
        angle = np.deg2rad(values)
        return IDENTITY._replace(b=-np.sin(angle), e=np.cos(angle))

    @override
    def describe(self, values: Floats, index: int) -> Fact:
        return Fact(self.name, format_signed(values[index], "°"))
