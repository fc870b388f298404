"""Options of inference. Does not import TensorFlow, so that the command line can check them early."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelines.errors import ConfigError, suggest

TTA_MODES = ("none", "flip")


@dataclass(frozen=True)
class PredictOptions:
    """Options for applying a model to images.

    Attributes:
        scale: Factor on pixels of 0 to 255 before they enter the model; None infers it from the model.
        tta: Test-time augmentation: `none`, or `flip`, which averages the probabilities of an image and of
            its mirror image.

    Raises:
        ConfigError: An option is invalid.
    """

    scale: float | None = None
    tta: str = "none"

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise ConfigError(
                "a factor above 0", f"scale={self.scale}", "leave --scale out, or give for example 0.00392"
            )
        if self.tta not in TTA_MODES:
            raise ConfigError(" or ".join(TTA_MODES), f"tta={self.tta}", suggest(self.tta, TTA_MODES))


DEFAULT_OPTIONS = PredictOptions()
