"""Options of inference. Does not import TensorFlow, so that the command line can check them early."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelines.errors import ConfigError, suggest
from service.inference.interpretation import HEADS, Head, PixelTransform

TTA_MODES = ("none", "flip")


@dataclass(frozen=True)
class PredictOptions:
    """Options for applying a model to images.

    Attributes:
        scale: Factor on pixels of 0 to 255 before they enter the model; None infers it from the model.
        tta: Test-time augmentation: `none`, or `flip`, which averages the probabilities of an image and of
            its mirror image.
        offset: Summand after the multiplication; requires `scale`.
        head: Whether the outputs are `probabilities` or `logits`; None infers it from the outputs.

    Raises:
        ConfigError: An option is invalid.
    """

    scale: float | None = None
    tta: str = "none"
    offset: float | None = None
    head: Head | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise ConfigError(
                "a factor above 0", f"scale={self.scale}", "leave --scale out, or give for example 0.00392"
            )
        if self.offset is not None and (self.scale is None or not math.isfinite(self.offset)):
            raise ConfigError(
                "a finite --offset together with --scale",
                f"scale={self.scale} offset={self.offset}",
                "give both, for example --scale 0.00784 --offset -1",
            )
        if self.head is not None and self.head not in HEADS:
            raise ConfigError(" or ".join(HEADS), f"head={self.head}", suggest(self.head, HEADS))
        if self.tta not in TTA_MODES:
            raise ConfigError(" or ".join(TTA_MODES), f"tta={self.tta}", suggest(self.tta, TTA_MODES))

    @property
    def pixels(self) -> PixelTransform | None:
        """The map from stored pixels to the input of the model; None to infer it."""
        return None if self.scale is None else PixelTransform(self.scale, self.offset or 0.0)


DEFAULT_OPTIONS = PredictOptions()
