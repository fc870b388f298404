"""Size: resizes images in the warp, so that the network trains on another size than the shards hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from typing_extensions import override

from pipelines.augment.base import GeometricAugmentation, ImageShape, RandomNumbers
from pipelines.augment.geometry import IDENTITY, Transform
from pipelines.settings import ImageSize, Spec


class Size(GeometricAugmentation):
    """Resizes images in the warp. As a map of positions it is the identity. Draws nothing.

    Crops enlarge what they show, so a network trained on smaller images sees objects of the same size in
    whole images (Touvron et al., "Fixing the train-test resolution discrepancy", 2019). Crops that are made
    while decoding already have this size.
    """

    class Settings(Spec):
        """Size of augmented images."""

        size: Annotated[
            ImageSize | None,
            Field(
                description="Height and width in pixels of augmented images, which the network trains on; "
                "None for those of `image_size`. Bilinear, not antialiased; keep width over height."
            ),
        ] = None

    name = "size"
    settings: Settings

    @override
    def is_on(self) -> bool:
        return self.settings.size is not None

    @override
    def draw(self, numbers: RandomNumbers, image: ImageShape) -> None:
        return None

    @override
    def transform(self, values: None, image: ImageShape) -> Transform:
        return IDENTITY

    @override
    def describe(self, values: None, index: int) -> None:
        return None
