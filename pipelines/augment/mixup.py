"""Mixup: every image is blended with its neighbour in the batch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import override

from pipelines.augment.base import ImageShape, MixingAugmentation, RandomNumbers
from pipelines.augment.beta import symmetric_beta
from pipelines.settings import Share, Spec


class Mixup(MixingAugmentation):
    """Blends an image with its neighbour (Zhang et al., "mixup: beyond empirical risk minimization", 2017).

    The two neighbours draw their shares independently. Drawn: the share of the image itself, `[n]`; 1 for no
    mixture.
    """

    class Settings(Spec):
        """Distribution of the shares."""

        mixup: Annotated[
            Share,
            Field(description="Parameter of the Beta distribution of the blend of two images; 0 for none."),
        ] = 0.0

    name = "mixup"
    key = "mix"
    streams: ClassVar = {"share": 22}
    is_compiled = True
    settings: Settings

    @override
    def is_on(self) -> bool:
        return self.settings.mixup > 0

    @override
    def draw(self, numbers: RandomNumbers, image: ImageShape) -> NDArray[np.float32]:
        share = symmetric_beta(self.settings.mixup, numbers.uniform("share"))
        return np.where(numbers.is_active, share, 1.0).astype(np.float32)

    @override
    def mix(self, images: Any, neighbours: Any, parameters: Any) -> tuple[Any, Any]:
        share = parameters[:, None, None, None]  # [B, 1, 1, 1]
        return share * images + (1 - share) * neighbours, parameters
