"""Zoom: a change of scale, drawn for each axis."""

from __future__ import annotations

from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field
from typing_extensions import override

from pipelines.augment.base import Fact, GeometricAugmentation, ImageShape, RandomNumbers
from pipelines.augment.geometry import IDENTITY, Transform
from pipelines.augment.philox import Floats
from pipelines.settings import Fraction, Spec


class Steps(NamedTuple):
    """Input pixels per output pixel of n images, `[n]` each.

    Above 1 shows more of the image, below 1 enlarges it.
    """

    x: Floats
    y: Floats


class Zoom(GeometricAugmentation):
    """Scales an image along each axis by a factor, uniform and symmetric about 1."""

    class Settings(Spec):
        """Range of the two factors."""

        zoom: Annotated[
            Fraction, Field(description="Largest change of scale along each axis, as a fraction.")
        ] = 0.0

    name = "zoom"
    streams: ClassVar = {"x": 4, "y": 5}
    settings: Settings

    @override
    def is_on(self) -> bool:
        return self.settings.zoom > 0

    @override
    def draw(self, numbers: RandomNumbers, image: ImageShape) -> Steps:
        largest = self.settings.zoom
        return Steps(1.0 + largest * numbers.symmetric("x"), 1.0 + largest * numbers.symmetric("y"))

    @override
    def transform(self, values: Steps, image: ImageShape) -> Transform:
        return IDENTITY._replace(a=values.x, e=values.y)

    @override
    def describe(self, values: Steps, index: int) -> Fact:
        return Fact(self.name, f"x {1 / values.x[index]:.0%} y {1 / values.y[index]:.0%}")
