"""Rotation about the center of the image."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from typing_extensions import override

from pipelines.augment.base import Fact, GeometricAugmentation, ImageShape, RandomNumbers, format_signed
from pipelines.augment.geometry import Transform
from pipelines.augment.philox import Floats
from pipelines.settings import Spec


class Rotation(GeometricAugmentation):
    """Rotates an image by an angle in degrees, uniform and symmetric. Drawn: the angle, `[n]`."""

    class Settings(Spec):
        """Range of the angle."""

        rotation: Annotated[
            float,
            Field(ge=0.0, le=180.0, strict=True, description="Largest rotation in degrees, either way."),
        ] = 0.0

    name = "rotation"
    streams: ClassVar = {"angle": 0}
    settings: Settings

    @override
    def is_on(self) -> bool:
        return self.settings.rotation > 0

    @override
    def draw(self, numbers: RandomNumbers, image: ImageShape) -> Floats:
        return self.settings.rotation * numbers.symmetric("angle")

    @override
    def transform(self, values: Floats, image: ImageShape) -> Transform:
        angle = np.deg2rad(values)
        cos = np.cos(angle)
        sin = np.sin(angle)
        return Transform(cos, -sin, 0.0, sin, cos, 0.0)

    @override
    def describe(self, values: Floats, index: int) -> Fact:
        return Fact(self.name, format_signed(values[index], "°"))
