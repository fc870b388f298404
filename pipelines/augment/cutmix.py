"""Cutmix: a box of every image shows its neighbour in the batch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import override

from pipelines.augment.base import ImageShape, MixingAugmentation, RandomNumbers
from pipelines.augment.beta import symmetric_beta
from pipelines.augment.boxes import Boxes, box_mask, to_corners
from pipelines.settings import Share, Spec


class Cutmix(MixingAugmentation):
    """Fills a box with the neighbour (Yun et al., "CutMix", 2019).

    The center of the box lies anywhere; its sides are clipped at the edges. Drawn:
    `(ymin, xmin, ymax, xmax)` in [0, 1], `[n, 4]`; zeros for no box.
    """

    class Settings(Spec):
        """Distribution of the area of the box."""

        cutmix: Annotated[
            Share,
            Field(
                description="Parameter of the Beta distribution of the area that a box of another image "
                "covers; 0 for none."
            ),
        ] = 0.0

    name = "cutmix"
    key = "cut"
    streams: ClassVar = {"area": 23, "y": 24, "x": 25}
    shape = (4,)
    is_compiled = True
    settings: Settings

    @override
    def is_on(self) -> bool:
        return self.settings.cutmix > 0

    @override
    def draw(self, numbers: RandomNumbers, image: ImageShape) -> NDArray[np.float32]:
        side = np.sqrt(1.0 - symmetric_beta(self.settings.cutmix, numbers.uniform("area")))
        top = numbers.uniform("y") - side / 2.0
        left = numbers.uniform("x") - side / 2.0
        return to_corners(Boxes(top, left, side, side), numbers.is_active)

    @override
    def mix(self, images: Any, neighbours: Any, parameters: Any) -> tuple[Any, Any]:
        import tensorflow as tf

        mask = box_mask(parameters, *images.shape[1:3])  # [B, H, W]
        # the share of the pixels shown, not of the area drawn: the box may cover few pixel centers
        share = 1 - tf.reduce_mean(tf.cast(mask, tf.float32), axis=(1, 2))
        return tf.where(mask[..., None], neighbours, images), share
