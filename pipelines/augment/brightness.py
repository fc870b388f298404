"""Brightness: a factor on all values."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from typing_extensions import override

from pipelines.augment.base import ColourAugmentation, Fact, ImageShape, RandomNumbers, format_signed
from pipelines.augment.colour import ColourMap
from pipelines.augment.philox import Floats
from pipelines.settings import Fraction, Spec


class Brightness(ColourAugmentation):
    """Multiplies the values of an image by a factor, uniform and symmetric about 1.

    Drawn: the factor, `[n]`.
    """

    class Settings(Spec):
        """Range of the factor."""

        brightness: Annotated[
            Fraction, Field(description="Largest change of brightness, as a fraction of the value.")
        ] = 0.0

    name = "brightness"
    streams: ClassVar = {"factor": 12}
    settings: Settings

    @override
    def is_on(self) -> bool:
        return self.settings.brightness > 0

    @override
    def draw(self, numbers: RandomNumbers, image: ImageShape) -> Floats:
        return 1.0 + self.settings.brightness * numbers.symmetric("factor")

    @override
    def precompose(self, after: ColourMap, values: Floats, image: ImageShape) -> ColourMap:
        return after._replace(gain=after.gain * values)

    @override
    def describe(self, values: Floats, index: int) -> Fact:
        return Fact(self.name, format_signed(100 * (values[index] - 1), "%"))
