"""Hue: a rotation of the colours about the grey axis."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from typing_extensions import override

from pipelines.augment.base import ColourAugmentation, Fact, ImageShape, RandomNumbers, format_signed
from pipelines.augment.colour import ColourMap, multiply
from pipelines.augment.philox import Floats
from pipelines.settings import Spec

# As a matrix: the cross product with the unit vector of the grey axis.
CROSS = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / np.sqrt(3.0)


class Hue(ColourAugmentation):
    """Rotates the colours of an image about the grey axis by an angle in degrees, uniform and symmetric.

    120 degrees turn red into green. The rotation is in RGB space: it preserves the mean of the channels,
    whereas a change of hue in HSV preserves the largest one. Greys stay unchanged. Drawn: the angle, `[n]`.
    """

    class Settings(Spec):
        """Range of the angle."""

        hue: Annotated[
            float, Field(ge=0.0, le=180.0, strict=True, description="Largest turn of the hue, in degrees.")
        ] = 0.0

    name = "hue"
    streams: ClassVar = {"angle": 15}
    channels = (3,)
    settings: Settings

    @override
    def is_on(self) -> bool:
        return self.settings.hue > 0

    @override
    def draw(self, numbers: RandomNumbers, image: ImageShape) -> Floats:
        return self.settings.hue * numbers.symmetric("angle")

    @override
    def precompose(self, after: ColourMap, values: Floats, image: ImageShape) -> ColourMap:
        angle = np.deg2rad(values)[:, None, None]
        # Rodrigues' rotation formula about (1, 1, 1), [n, 3, 3]
        rotation = np.cos(angle) * np.eye(3) + (1.0 - np.cos(angle)) / 3.0 + np.sin(angle) * CROSS
        return after._replace(linear=multiply(after.linear, rotation))

    @override
    def describe(self, values: Floats, index: int) -> Fact:
        return Fact(self.name, format_signed(values[index], "°"))
