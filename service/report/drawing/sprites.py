"""Sprite sheets of the gallery: the thumbnails of a few hundred images in one picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from service.report.drawing.album import MAX_ENLARGED_SIDE, Drawing
from service.report.drawing.sheets import SheetLayout, TileScaling, compute_layout, draw_sheet, find_block

COLUMNS = 20
SHEET_IMAGES = 300  # thumbnails on a full sheet
# Longest sides of thumbnails, in pixels; with a pixel of frame, each is a whole number of JPEG blocks.
SIDES = (95, 63)
SHADES = 16  # of small grey images: more would take twice as many bytes
GREYS = np.linspace(0, 255, SHADES).round().astype(np.uint8).reshape(-1, 1).repeat(3, axis=1)
# Pixels of all thumbnails of a report: about 4 MB of pictures.
MAX_PIXELS = 20_000_000


@dataclass(frozen=True)
class SpriteSpec:
    """How the images of a split are drawn as thumbnails.

    Attributes:
        size: Height and width of a thumbnail, in pixels.
        kind: Kind of the pictures, see `service.report.drawing.album.Drawing`.
        max_images: Largest number of thumbnails in a report.
    """

    size: tuple[int, int]
    kind: str
    max_images: int

    @property
    def _scaling(self) -> TileScaling:
        return TileScaling(shrink=1, grow=1, block=find_block(self.kind), columns=COLUMNS)

    def compute_layout(self, count: int = SHEET_IMAGES) -> SheetLayout:
        """Computes the positions of `count` thumbnails on a sheet."""
        return compute_layout(*self.size, count, self._scaling)

    def draw(self, pixels: np.ndarray, alt: str, origin: dict[str, Any]) -> Drawing:
        """Draws images as one sheet: image i is tile i, see `SheetLayout`.

        Args:
            pixels: uint8 `[N, H, W, 1 or 3]`.
            alt: Alternative text for those who cannot see the picture.
            origin: Data that the picture was made from, for the manifest.
        """
        tiles = np.stack([self._shrink(image) for image in pixels])
        frame = (0,) * tiles.shape[3]
        sheet = draw_sheet(tiles, self._scaling, np.zeros(len(tiles), bool), frame, frame)
        if self.kind == "png-16":
            indices = np.rint(sheet[..., 0] / 255 * (SHADES - 1)).astype(np.uint8)
            return Drawing(indices, "gallery", alt, origin, self.kind, GREYS)
        return Drawing(sheet[..., 0] if tiles.shape[3] == 1 else sheet, "gallery", alt, origin, self.kind)

    def _shrink(self, image: np.ndarray) -> np.ndarray:
        """Shrinks an image `[H, W, C]` to the size of a thumbnail."""
        if image.shape[:2] == self.size:
            return image
        height, width = self.size
        pixels = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        shrunk = np.asarray(pixels.resize((width, height), Image.Resampling.LANCZOS))
        return shrunk.reshape(height, width, image.shape[2])


def choose_sprites(shape: tuple[int, ...], images: int) -> SpriteSpec:
    """Chooses size and encoding of the thumbnails.

    Small images keep their size, grey ones in 16 shades; others are shrunk, further if there are many.

    Args:
        shape: Height, width and channels of the images.
        images: Number of images in the split.
    """
    height, width, channels = shape
    longest = max(height, width)
    side = SIDES[0] if images * _count_pixels(height, width, SIDES[0]) <= MAX_PIXELS else SIDES[1]
    kind = "webp"
    if longest <= MAX_ENLARGED_SIDE:
        side = longest
        kind = "png-16" if channels == 1 else "jpeg-444"
    size = _fit(height, width, side)
    return SpriteSpec(size, kind, MAX_PIXELS // (size[0] * size[1]))


def _fit(height: int, width: int, side: int) -> tuple[int, int]:
    """Returns the size of an image whose longer side is at most `side`, in its proportions."""
    factor = min(1.0, side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _count_pixels(height: int, width: int, side: int) -> int:
    fitted_height, fitted_width = _fit(height, width, side)
    return fitted_height * fitted_width
