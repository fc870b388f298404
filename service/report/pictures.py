"""From arrays to picture files: colours, tiles, and an album that keeps account of every file."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Anchors of viridis (S. van der Walt and N. Smith, 2015): even in lightness, safe for the colour-blind.
_ANCHORS = (
    (68, 1, 84),
    (71, 45, 123),
    (59, 82, 139),
    (44, 114, 142),
    (33, 145, 140),
    (40, 174, 128),
    (94, 201, 98),
    (173, 220, 48),
    (253, 231, 37),
)
_AT = np.linspace(0, 255, len(_ANCHORS))
VIRIDIS = np.stack([np.rint(np.interp(np.arange(256), _AT, channel)) for channel in zip(*_ANCHORS, strict=True)], axis=1).astype(np.uint8)

FRAME = (24, 27, 34)  # between tiles
FLAT = (112, 116, 124)  # a channel without a signal: a grey that the colour map does not hold
PHOTO_SIDE = 64  # images with a longer side above it are photos and stored as JPEG


def coloured(levels: np.ndarray) -> np.ndarray:
    """Colours of levels 0 to 255: uint8 `[...]` to uint8 `[..., 3]`."""
    return np.asarray(VIRIDIS[levels])


def enlarged(tiles: np.ndarray, smallest: int) -> np.ndarray:
    """Repeats pixels a whole number of times until the longer side has at least `smallest` of them.

    Args:
        tiles: `[N, H, W, ...]`.
        smallest: In pixels.
    """
    factor = -(-smallest // max(tiles.shape[1:3]))
    return tiles.repeat(factor, axis=1).repeat(factor, axis=2) if factor > 1 else tiles


def reduced(tiles: np.ndarray, largest: int) -> np.ndarray:
    """Averages blocks of whole pixels until the longer side has at most `largest` of them.

    Args:
        tiles: Floats `[N, H, W]`; rows or columns missing from the last block repeat the edge.
        largest: In pixels.
    """
    count, height, width = tiles.shape
    factor = -(-max(height, width) // largest)
    if factor <= 1:
        return tiles
    padded = np.pad(tiles, ((0, 0), (0, -height % factor), (0, -width % factor)), mode="edge")
    blocks = padded.reshape(count, padded.shape[1] // factor, factor, padded.shape[2] // factor, factor)
    return np.asarray(blocks.mean(axis=(2, 4)))


def tiled(tiles: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """Lays tiles out in rows, from left to right and from top to bottom, on a dark frame.

    Args:
        tiles: uint8 `[N, H, W, 3]`, N >= 1.
        columns: Tiles in a full row.
        gap: Pixels around and between tiles.

    Returns:
        uint8 `[rows * (H + gap) + gap, columns * (W + gap) + gap, 3]`, with fewer columns if N is less.
    """
    count, height, width, _ = tiles.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.empty((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), np.uint8)
    sheet[:] = FRAME
    for index, tile in enumerate(tiles):
        top, left = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return sheet


@dataclass(frozen=True)
class Picture:
    """A picture file as the page needs it: path relative to the page, size in pixels, words for it."""

    file: str
    width: int
    height: int
    alt: str


class Album:
    """The picture files of one report, named by their content.

    Args:
        directory: Where the page will stand; the pictures go into a folder beside it.

    Attributes:
        entries: For the manifest: file, sha256 and origin of each picture.
    """

    FOLDER = "pictures"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.entries: dict[str, dict[str, Any]] = {}
        (directory / self.FOLDER).mkdir()

    def add_sheet(self, pixels: np.ndarray, stem: str, alt: str, **origin: Any) -> Picture:
        """Adds a drawn picture, uint8 `[H, W, 3]`, without loss."""
        return self._add(Image.fromarray(pixels), "png", stem, alt, origin)

    def add_photo(self, pixels: np.ndarray, stem: str, alt: str, **origin: Any) -> Picture:
        """Adds an image of a data set, uint8 `[H, W, 1 or 3]`; tiny ones are enlarged, without loss."""
        photo = max(pixels.shape[:2]) > PHOTO_SIDE
        shown = pixels if photo else enlarged(pixels[None], 112)[0]
        image = Image.fromarray(shown[..., 0] if shown.shape[2] == 1 else shown)
        return self._add(image, "jpeg" if photo else "png", stem, alt, origin)

    def _add(self, image: Image.Image, kind: str, stem: str, alt: str, origin: dict[str, Any]) -> Picture:
        buffer = io.BytesIO()
        image.save(buffer, kind, **({"quality": 90, "optimize": True} if kind == "jpeg" else {"compress_level": 6}))
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        file = f"{self.FOLDER}/{stem}-{digest[:12]}.{'jpg' if kind == 'jpeg' else kind}"
        (self.directory / file).write_bytes(buffer.getvalue())
        entry = self.entries.setdefault(file, {"file": file, "sha256": digest, "made_from": []})
        entry["made_from"].append(origin)
        return Picture(file, *image.size, alt)
