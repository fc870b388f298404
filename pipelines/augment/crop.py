"""Random resized crop: a part of the image, enlarged to the whole."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator
from typing_extensions import override

from pipelines.augment.base import Fact, GeometricAugmentation, ImageShape, RandomNumbers
from pipelines.augment.boxes import Boxes, place_boxes, scale_linear, scale_log
from pipelines.augment.geometry import IDENTITY, Transform
from pipelines.settings import PositiveShare, Ratio, Spec


class Crop(GeometricAugmentation):
    """Shows a box of an image (Szegedy et al., "Going deeper with convolutions", 2015).

    The area of the box is uniform, its shape uniform in the logarithm. Every other geometric change applies
    to the box. Drawn: the boxes.

    With `crop_at: decode`, the part is cut out of the stored image instead, see
    `pipelines.augment.decoded_crop`, and nothing is drawn here.
    """

    class Settings(Spec):
        """Ranges of the area and the shape of the box."""

        crop: Annotated[
            tuple[PositiveShare, PositiveShare] | None,
            Field(
                description="Smallest and largest share of the area that is shown; None for the whole image."
            ),
        ] = None
        crop_ratio: Annotated[
            tuple[Ratio, Ratio],
            Field(
                description="Smallest and largest width over height of the crop, uniform in the logarithm."
            ),
        ] = (3 / 4, 4 / 3)
        crop_at: Annotated[
            Literal["device", "decode"],
            Field(
                description="Where the crop is cut out: `device`, from the image of `image_size`, where a "
                "side that is too long is cut; or `decode`, from the pixels of the stored image, as drawn "
                "by torchvision's RandomResizedCrop. With `decode`, nothing around the crop comes into "
                "view, and no decoded images are cached."
            ),
        ] = "device"

        @field_validator("crop_at")
        @classmethod
        def _validate_crop_at(cls, value: str, info: ValidationInfo) -> str:
            if value == "decode" and info.data.get("crop", (1.0, 1.0)) is None:
                raise ValueError("there is no crop: set augment.crop=[0.08, 1.0] as well")
            return value

    name = "crop"
    streams: ClassVar = {"area": 8, "ratio": 9, "y": 10, "x": 11}
    in_unit_square = True
    settings: Settings

    @override
    def is_on(self) -> bool:
        return self.settings.crop is not None and self.settings.crop_at == "device"

    @override
    def draw(self, numbers: RandomNumbers, image: ImageShape) -> Boxes:
        smallest, largest = self.settings.crop or (1.0, 1.0)
        area = scale_linear(smallest, largest, numbers.uniform("area"))
        ratio = scale_log(*self.settings.crop_ratio, numbers.uniform("ratio"))
        boxes = place_boxes(area, ratio / image.aspect, numbers.uniform("y"), numbers.uniform("x"))
        whole = (0.0, 0.0, 1.0, 1.0)
        return Boxes(*(np.where(numbers.is_active, *sides) for sides in zip(boxes, whole, strict=True)))

    @override
    def transform(self, values: Boxes, image: ImageShape) -> Transform:
        return IDENTITY._replace(a=values.width, c=values.left, e=values.height, f=values.top)

    @override
    def describe(self, values: Boxes, index: int) -> Fact:
        top, left, height, width = (float(side[index]) for side in values)
        return Fact(self.name, f"{height * width:.0%} at x {left:.0%} y {top:.0%}")
