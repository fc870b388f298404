"""Saturation: a factor on the distance of each colour from its grey."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from typing_extensions import override

from pipelines.augment.base import ColourAugmentation, Fact, ImageShape, RandomNumbers, format_signed
from pipelines.augment.colour import LUMA, ColourMap
from pipelines.augment.philox import Floats
from pipelines.settings import Share, Spec


class Saturation(ColourAugmentation):
    """Multiplies the distance of a colour from the grey of its luma by a factor.

    The factor is uniform and symmetric about 1. Greys stay unchanged. Drawn: the factor, `[n]`.
    """

    class Settings(Spec):
        """Range of the factor."""

        saturation: Annotated[
            Share, Field(description="Largest change of saturation, as a fraction; 1 reaches grey.")
        ] = 0.0

    name = "saturation"
    streams: ClassVar = {"factor": 14}
    channels = (3,)
    settings: Settings

    @override
    def is_on(self) -> bool:
        return self.settings.saturation > 0

    @override
    def draw(self, numbers: RandomNumbers, image: ImageShape) -> Floats:
        return 1.0 + self.settings.saturation * numbers.symmetric("factor")

    @override
    def precompose(self, after: ColourMap, values: Floats, image: ImageShape) -> ColourMap:
        factor = values[:, None, None]
        linear = (1.0 - factor) * after.grey[..., None] * LUMA + factor * after.linear
        return after._replace(linear=linear)

    @override
    def describe(self, values: Floats, index: int) -> Fact:
        return Fact(self.name, format_signed(100 * (values[index] - 1), "%"))
