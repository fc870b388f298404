"""Random erasing: a box of the image is filled with one value."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import override

from pipelines.augment.base import Fact, ImageShape, PixelAugmentation, RandomNumbers
from pipelines.augment.boxes import box_mask, place_boxes, scale_linear, scale_log, to_corners
from pipelines.augment.fill import Fill
from pipelines.settings import Share

AREA = (0.02, 0.33)  # as a share of the image
RATIO = (0.3, 3.3)  # width over height


class Erase(PixelAugmentation):
    """Fills a box with `fill_value` (Zhong et al., "Random erasing data augmentation", 2017).

    The area of the box is uniform, its shape uniform in the logarithm. Drawn: `(ymin, xmin, ymax, xmax)` in
    [0, 1], `[n, 4]`; zeros for no box.
    """

    class Settings(Fill.Settings):
        """Probability of a box."""

        erase: Annotated[
            Share, Field(description="Probability that a box of an image is erased (random erasing).")
        ] = 0.0

    name = "erase"
    streams: ClassVar = {"is_erased": 16, "area": 17, "ratio": 18, "y": 19, "x": 20}
    shape = (4,)
    is_compiled = True
    settings: Settings

    @override
    def is_on(self) -> bool:
        return self.settings.erase > 0

    @override
    def draw(self, numbers: RandomNumbers, image: ImageShape) -> NDArray[np.float32]:
        area = scale_linear(*AREA, numbers.uniform("area"))
        ratio = scale_log(*RATIO, numbers.uniform("ratio")) / image.aspect
        boxes = place_boxes(area, ratio, numbers.uniform("y"), numbers.uniform("x"))
        return to_corners(boxes, numbers.is_active & (numbers.uniform("is_erased") < self.settings.erase))

    @override
    def apply(self, images: Any, parameters: Any) -> Any:
        import tensorflow as tf

        mask = box_mask(parameters, *images.shape[1:3])  # [B, H, W]
        return tf.where(mask[..., None], self.settings.fill_value, images)

    @override
    def describe(self, values: NDArray[np.float32], index: int) -> Fact:
        top, left, bottom, right = (float(corner) for corner in values[index])
        area = (bottom - top) * (right - left)
        return Fact("erased", f"{area:.0%}" if area else "no")
