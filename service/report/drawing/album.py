"""From arrays to picture files: colours, tiles, and an album that keeps account of every file."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from service.report.drawing.colours import FLAT, FRAME, VIRIDIS, coloured

__all__ = [
    "FLAT",
    "FRAME",
    "VIRIDIS",
    "Album",
    "Drawing",
    "Picture",
    "coloured",
    "encoded",
    "enlarged",
    "photo",
    "reduced",
    "tiled",
]


PHOTO_SIDE = 64  # images with a longer side above it are photos and stored as JPEG
THREADS = 4  # that encode; Pillow lets others run meanwhile
SAVED: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 3},
    "jpeg": {"quality": 75},
    "webp": {"quality": 60, "method": 1},
    "whole": {"quality": 80, "subsampling": 0},  # JPEG with whole colours
    "photo": {"quality": 90, "optimize": True},
}
SUFFIXES = {"jpeg": "jpg", "photo": "jpg", "whole": "jpg"}


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


@dataclass(frozen=True)
class Drawing:
    """A picture to be encoded.

    Attributes:
        pixels: uint8 `[H, W, 3]`, or `[H, W]`: grey, or places in the palette.
        stem: How its file name begins.
        alt: Words for it.
        origin: What it was made from, for the manifest.
        kind: `png`, `jpeg`, `webp`; or JPEG as `photo`, of an image as it is, or as `whole`, without halved colours.
        palette: uint8 `[256, 3]`.
    """

    pixels: np.ndarray
    stem: str
    alt: str
    origin: dict[str, Any]
    kind: str = "png"
    palette: np.ndarray | None = None


def encoded(drawing: Drawing) -> bytes:
    """The bytes of a picture file."""
    kind, image = drawing.kind, Image.fromarray(np.ascontiguousarray(drawing.pixels))
    if drawing.palette is not None:
        image.putpalette(drawing.palette.tobytes())
        image = (
            image if kind == "png" else image.convert("RGB")
        )  # five times faster than looking colours up with NumPy
    buffer = io.BytesIO()
    image.save(buffer, "jpeg" if kind in SUFFIXES else kind, **SAVED[kind])
    return buffer.getvalue()


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

    def add_all(self, drawings: Iterable[Drawing]) -> list[Picture]:
        """Adds pictures, encoded in threads."""
        drawings = list(drawings)
        with ThreadPoolExecutor(THREADS) as threads:
            return [
                self._add(drawing, content)
                for drawing, content in zip(drawings, threads.map(encoded, drawings), strict=True)
            ]

    def add_sheet(self, pixels: np.ndarray, stem: str, alt: str, **origin: Any) -> Picture:
        """Adds a drawn picture, uint8 `[H, W, 3]`, without loss."""
        return self.add_all([Drawing(pixels, stem, alt, origin)])[0]

    def add_photo(self, pixels: np.ndarray, stem: str, alt: str, **origin: Any) -> Picture:
        """Adds an image of a data set, uint8 `[H, W, 1 or 3]`; tiny ones are enlarged, without loss."""
        return self.add_all([photo(pixels, stem, alt, origin)])[0]

    def _add(self, drawing: Drawing, content: bytes) -> Picture:
        digest = hashlib.sha256(content).hexdigest()
        file = f"{self.FOLDER}/{drawing.stem}-{digest[:12]}.{SUFFIXES.get(drawing.kind, drawing.kind)}"
        (self.directory / file).write_bytes(content)
        entry = self.entries.setdefault(file, {"file": file, "sha256": digest, "made_from": []})
        entry["made_from"].append(drawing.origin)
        height, width = drawing.pixels.shape[:2]
        return Picture(file, width, height, drawing.alt)


def photo(pixels: np.ndarray, stem: str, alt: str, origin: dict[str, Any]) -> Drawing:
    """An image of a data set, uint8 `[H, W, 1 or 3]`; tiny ones enlarged, without loss."""
    large = max(pixels.shape[:2]) > PHOTO_SIDE
    shown = pixels if large else enlarged(pixels[None], 112)[0]
    return Drawing(
        shown[..., 0] if shown.shape[2] == 1 else shown, stem, alt, origin, "photo" if large else "png"
    )
