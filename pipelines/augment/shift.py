"""Shift along both sides of the image."""

from __future__ import annotations

from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field
from typing_extensions import override

from pipelines.augment.base import Fact, GeometricAugmentation, ImageShape, RandomNumbers, format_signed
from pipelines.augment.geometry import IDENTITY, Transform
from pipelines.augment.philox import Floats
from pipelines.settings import Share, Spec


class Offsets(NamedTuple):
    """Shifts of n images as fractions of width and height, `[n]` each.

    Positive values bring the content to the right and below into view.
    """

    x: Floats
    y: Floats


class Shift(GeometricAugmentation):
    """Shifts an image by a fraction of its width and of its height, each uniform and symmetric."""

    class Settings(Spec):
        """Range of the two fractions."""

        shift: Annotated[
            Share, Field(description="Largest shift, as a fraction of the height and of the width.")
        ] = 0.0

    name = "shift"
    streams: ClassVar = {"x": 1, "y": 2}
    settings: Settings

    @override
    def is_on(self) -> bool:
        return self.settings.shift > 0

    @override
    def draw(self, numbers: RandomNumbers, image: ImageShape) -> Offsets:
        largest = self.settings.shift
        return Offsets(largest * numbers.symmetric("x"), largest * numbers.symmetric("y"))

    @override
    def transform(self, values: Offsets, image: ImageShape) -> Transform:
        return IDENTITY._replace(c=values.x * image.aspect, f=values.y)

    @override
    def describe(self, values: Offsets, index: int) -> Fact:
        x = format_signed(100 * values.x[index], "%")
        y = format_signed(100 * values.y[index], "%")
        return Fact(self.name, f"x {x} y {y}")
