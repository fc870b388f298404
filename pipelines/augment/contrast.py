"""Contrast: a factor on the distance from the middle grey."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from typing_extensions import override

from pipelines.augment.base import ColourAugmentation, Fact, ImageShape, RandomNumbers, format_signed
from pipelines.augment.colour import MIDDLE, ColourMap
from pipelines.augment.philox import Floats
from pipelines.settings import Fraction, Spec


class Contrast(ColourAugmentation):
    """Multiplies the distance from the middle grey by a factor, uniform and symmetric about 1.

    Drawn: the factor, `[n]`.
    """

    class Settings(Spec):
        """Range of the factor."""

        contrast: Annotated[
            Fraction, Field(description="Largest change of contrast about the middle grey, as a fraction.")
        ] = 0.0

    name = "contrast"
    streams: ClassVar = {"factor": 13}
    settings: Settings

    @override
    def is_on(self) -> bool:
        return self.settings.contrast > 0

    @override
    def draw(self, numbers: RandomNumbers, image: ImageShape) -> Floats:
        return 1.0 + self.settings.contrast * numbers.symmetric("factor")

    @override
    def precompose(self, after: ColourMap, values: Floats, image: ImageShape) -> ColourMap:
        shift = (MIDDLE * (1.0 - values))[:, None]  # [n, 1], which leaves the middle grey unchanged
        offset = after.offset + after.gain[:, None] * after.grey * shift
        return after._replace(gain=after.gain * values, offset=offset)

    @override
    def describe(self, values: Floats, index: int) -> Fact:
        return Fact(self.name, format_signed(100 * (values[index] - 1), "%"))
