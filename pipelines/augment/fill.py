"""Fill: what the geometric changes show beyond the edge of the image."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import override

from pipelines.augment.base import Augmentation, ImageShape, RandomNumbers
from pipelines.settings import Spec


class Fill(Augmentation):
    """Settings of the warp (see `pipelines.augment.warp.warp`). Changes nothing by itself."""

    class Settings(Spec):
        """Pixels beyond the edge, and in erased boxes."""

        fill: Annotated[
            Literal["nearest", "reflect", "constant", "wrap"],
            Field(
                description="What lies beyond the edge: the `nearest` pixel, the image mirrored (`reflect`) "
                "or repeated (`wrap`), or `constant`."
            ),
        ] = "nearest"
        fill_value: Annotated[
            float,
            Field(
                ge=0.0,
                le=255.0,
                strict=True,
                description="Pixel value beyond the edge with `constant`, and in erased boxes, 0 to 255.",
            ),
        ] = 0.0

    name = "fill"
    settings: Settings

    @override
    def is_on(self) -> bool:
        return False

    @override
    def draw(self, numbers: RandomNumbers, image: ImageShape) -> Any:
        raise NotImplementedError("fill draws nothing")
