"""How pixels enter a model and what its outputs mean, with the reasons. Does not import TensorFlow."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipelines.spec import DataSpec, Fit

Head = Literal["probabilities", "logits"]
HEADS: tuple[Head, ...] = ("probabilities", "logits")

PIXEL_FIX = "override with --scale and --offset"
HEAD_FIX = "override with --head"
FIT_FIX = "override with --fit"


@dataclass(frozen=True)
class PixelTransform:
    """The map from stored pixels, 0 to 255, to the values that enter a model: `pixel * scale + offset`.

    Attributes:
        scale: Factor on the stored pixels.
        offset: Summand after the multiplication.
    """

    scale: float = 1.0
    offset: float = 0.0

    def apply(self, pixels: Any) -> Any:
        """Maps float pixels of 0 to 255, an array or a tensor of any shape, to the input of the model."""
        values = pixels * self.scale
        return values + self.offset if self.offset else values

    @property
    def range(self) -> str:
        """The smallest and largest input as text, such as `-1 to 1`."""
        low = round(self.offset, 6) + 0.0
        high = round(255 * self.scale + self.offset, 6) + 0.0
        return f"{low:g} to {high:g}"

    def __str__(self) -> str:
        return f"{self.range} (scale={self.scale:.6g}, offset={self.offset:.6g})"


UNIT = PixelTransform(1 / 255)
RAW = PixelTransform(1.0)
SIGNED = PixelTransform(1 / 127.5, -1.0)
# The input ranges that models are trained on, the most common one first: it is assumed if nothing decides.
CANDIDATES = (UNIT, RAW, SIGNED)


@dataclass(frozen=True)
class ImageFit:
    """How an image of other proportions becomes one of the size that a model takes.

    Attributes:
        fit: `stretch`, `crop` or `pad`, see `pipelines.spec.DataSpec.fit`.
        resize: Length that the shorter side is resized to before a crop; None cuts as little as possible.
        antialias: Whether images that are made smaller are low-pass filtered first.
    """

    fit: Fit = "stretch"
    resize: int | None = None
    antialias: bool = False

    def apply(self, data: DataSpec) -> DataSpec:
        """Returns settings for reading images that fit them in this way."""
        return data.model_copy(update=asdict(self))

    def __str__(self) -> str:
        text = {"stretch": "stretched", "crop": "cropped to the centre", "pad": "padded with black"}[self.fit]
        if self.resize is not None:
            text += f" after resizing the shorter side to {self.resize}"
        return f"{text}, antialiased" if self.antialias else text


STRETCH = ImageFit()


@dataclass(frozen=True)
class Interpretation:
    """How images enter a model and what its outputs mean.

    Attributes:
        pixels: Map from stored pixels to the input of the model.
        head: Whether the outputs are probabilities or logits.
        pixels_reason: Why `pixels` was chosen, as a phrase.
        head_reason: Why `head` was chosen, as a phrase.
        is_normalized: Whether rows of probabilities sum to 1; otherwise they are divided by their sum.
        image_fit: How images of other proportions are made to fit.
        fit_reason: Why `image_fit` was chosen, as a phrase.
    """

    pixels: PixelTransform
    head: Head
    pixels_reason: str
    head_reason: str
    is_normalized: bool = True
    image_fit: ImageFit = STRETCH
    fit_reason: str = f"the default; {FIT_FIX}"

    @property
    def notes(self) -> tuple[str, ...]:
        """The decisions with their reasons, a line each, for the terminal and the footer of a report."""
        return (
            f"pixels: {self.pixels}: {self.pixels_reason}",
            f"outputs: {self.head}: {self.head_reason}",
            f"images of other proportions: {self.image_fit}: {self.fit_reason}",
        )

    def describe(self) -> dict[str, Any]:
        """Returns the decisions as plain values, for tables, score files and manifests."""
        return {
            "scale": self.pixels.scale,
            "offset": self.pixels.offset,
            "head": self.head,
            **asdict(self.image_fit),
            "interpretation": list(self.notes),
        }
