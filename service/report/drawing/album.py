"""Encodes the pictures of a page, names their files by content, and records their origin."""

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

from service.report.rasters import repeat_pixels

# Images whose longer side has more pixels are photos, stored as WebP.
MAX_ENLARGED_SIDE = 64
# Smallest longer side of images that are enlarged, in pixels.
MIN_PHOTO_SIDE = 112
MAX_STEM = 80  # characters of a file's name before its digest; the name of a layer may have thousands
# Encoding threads; Pillow releases the interpreter lock while it encodes.
THREADS = 4
# File format, and options of Pillow's `save`, by kind of picture.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("png", {"compress_level": 3}),
    "png-16": ("png", {"compress_level": 6, "bits": 4}),
    "jpeg": ("jpeg", {"quality": 75, "subsampling": 0}),
    "jpeg-444": ("jpeg", {"quality": 80, "subsampling": 0}),
    "webp": ("webp", {"quality": 60, "method": 1}),
    "map": ("webp", {"quality": 85, "method": 1}),
    "photo": ("webp", {"quality": 80, "method": 1}),
}


@dataclass(frozen=True)
class Picture:
    """A picture file on a page.

    Attributes:
        file: Path relative to the page.
        width: Width in pixels.
        height: Height in pixels.
        alt: Alternative text for those who cannot see the picture.
    """

    file: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Drawing:
    """A picture to be encoded.

    Attributes:
        pixels: uint8 `[H, W, 3]`, or `[H, W]`: grey values, or indices into the palette.
        stem: First part of the file name.
        alt: Alternative text for those who cannot see the picture.
        origin: Data that the picture was made from, for the manifest.
        kind: `png`; `png-16`, PNG of at most 16 colours; `jpeg` or, of higher quality, `jpeg-444`, both
            without chroma subsampling; `webp`; `map`, WebP for heatmaps; `photo`, WebP of high quality.
        palette: Colours of the indices, uint8 `[256, 3]` or `[16, 3]`; None for pixels that are not indices.
    """

    pixels: np.ndarray
    stem: str
    alt: str
    origin: dict[str, Any]
    kind: str = "png"
    palette: np.ndarray | None = None


def encode(drawing: Drawing) -> bytes:
    """Encodes a drawing as the bytes of a picture file."""
    file_format, options = FORMATS[drawing.kind]
    image = Image.fromarray(np.ascontiguousarray(drawing.pixels))
    if drawing.palette is not None:
        image.putpalette(drawing.palette.tobytes())
        if file_format != "png":
            # Five times as fast as looking the colours up with NumPy.
            image = image.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def draw_photo(pixels: np.ndarray, stem: str, alt: str, origin: dict[str, Any]) -> Drawing:
    """Draws an image of a dataset: a large one as WebP, a small one enlarged and lossless.

    Args:
        pixels: uint8 `[H, W, 1 or 3]`.
        stem: First part of the file name.
        alt: Alternative text for those who cannot see the picture.
        origin: Data that the picture was made from, for the manifest.
    """
    is_large = max(pixels.shape[:2]) > MAX_ENLARGED_SIDE
    if not is_large:
        pixels = repeat_pixels(pixels[None], MIN_PHOTO_SIDE)[0]
    if pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return Drawing(pixels, stem, alt, origin, "photo" if is_large else "png")


class Album:
    """The picture files of one page, named by their content.

    Args:
        directory: Directory of the page; the pictures go into a folder in it.

    Attributes:
        directory: Directory of the page.
        entries: Entries for the manifest by file: the file, its SHA-256 and the origins of the picture.
    """

    FOLDER = "pictures"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.entries: dict[str, dict[str, Any]] = {}
        (directory / self.FOLDER).mkdir()

    def add_all(self, drawings: Iterable[Drawing]) -> list[Picture]:
        """Adds drawings, encoded in several threads, and returns their pictures in the same order."""
        drawings = list(drawings)
        with ThreadPoolExecutor(THREADS) as threads:
            contents = threads.map(encode, drawings)
            return [self._add(drawing, content) for drawing, content in zip(drawings, contents, strict=True)]

    def add_sheet(self, pixels: np.ndarray, stem: str, alt: str, **origin: Any) -> Picture:
        """Adds uint8 pixels `[H, W, 3]` losslessly; the arguments are those of `Drawing`."""
        return self.add_all([Drawing(pixels, stem, alt, origin)])[0]

    def add_photo(self, pixels: np.ndarray, stem: str, alt: str, **origin: Any) -> Picture:
        """Adds an image of a dataset, uint8 `[H, W, 1 or 3]`; the arguments are those of `draw_photo`."""
        return self.add_all([draw_photo(pixels, stem, alt, origin)])[0]

    def _add(self, drawing: Drawing, content: bytes) -> Picture:
        digest = hashlib.sha256(content).hexdigest()
        suffix = FORMATS[drawing.kind][0].replace("jpeg", "jpg")
        file = f"{self.FOLDER}/{drawing.stem[:MAX_STEM]}-{digest[:12]}.{suffix}"
        (self.directory / file).write_bytes(content)
        # The same pixels may come from several origins.
        entry = self.entries.setdefault(file, {"file": file, "sha256": digest, "made_from": []})
        entry["made_from"].append(drawing.origin)
        height, width = drawing.pixels.shape[:2]
        return Picture(file, width, height, drawing.alt)
