"""Options of inference. Does not import TensorFlow, so that the command line can check them early."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from pipelines.errors import ConfigError, suggest
from pipelines.spec import Fit
from service.inference.interpretation import HEADS, Head, ImageFit, PixelTransform
from service.models.metadata import parse_fit

FITS = get_args(Fit)
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
        fit: How images of other proportions are made to fit, `stretch`, `crop` or `pad`; None for what the
            model was trained with, or `stretch` if that is not known.
        resize: With `fit` crop, the length that the shorter side is resized to first.
        antialias: With `fit`, whether images that are made smaller are low-pass filtered.

    Raises:
        ConfigError: An option is invalid.
    """

    scale: float | None = None
    tta: str = "none"
    offset: float | None = None
    head: Head | None = None
    fit: str | None = None
    resize: int | None = None
    antialias: bool = False

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
        if self.fit is not None and self.fit not in FITS:
            raise ConfigError(" or ".join(FITS), f"fit={self.fit}", suggest(self.fit, FITS))
        if self.fit is None and (self.resize is not None or self.antialias):
            raise ConfigError(
                "--fit together with --resize or --antialias",
                f"fit={self.fit} resize={self.resize} antialias={self.antialias}",
                "give all, for example --fit crop --resize 256",
            )
        if self.resize is not None and (self.fit != "crop" or self.resize < 1):
            raise ConfigError(
                "a length above 0, and --fit crop",
                f"fit={self.fit} resize={self.resize}",
                "give both, for example --fit crop --resize 256",
            )
        if self.tta not in TTA_MODES:
            raise ConfigError(" or ".join(TTA_MODES), f"tta={self.tta}", suggest(self.tta, TTA_MODES))

    @property
    def pixels(self) -> PixelTransform | None:
        """The map from stored pixels to the input of the model; None to infer it."""
        return None if self.scale is None else PixelTransform(self.scale, self.offset or 0.0)

    @property
    def image_fit(self) -> ImageFit | None:
        """How images of other proportions are made to fit; None for what the model was trained with."""
        return None if self.fit is None else ImageFit(parse_fit(self.fit), self.resize, self.antialias)


DEFAULT_OPTIONS = PredictOptions()
