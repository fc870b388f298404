"""Thumbnails: a small square of a picture that stands for it where there is no room, or no time, for all of it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from service.report.drawing.album import Album, Drawing, Picture

SIDE = 96  # pixels
SHEET = 3 / 2  # times as wide as high: a sheet, whose first tiles are shown rather than its middle
TILES = 96  # pixels of a sheet that are shown


def thumbnail(album: Album, picture: Picture) -> Picture:
    """Adds a square of a picture to its album: the middle of a photo, the first tiles of a sheet."""
    with Image.open(album.directory / picture.file) as image:
        pixels = image.convert("RGB")
    width, height = pixels.size
    if width > SHEET * height:
        side = min(width, height, TILES)
        pixels = pixels.crop((0, 0, side, side))
    else:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        pixels = pixels.crop((left, top, left + side, top + side))
    small = pixels.resize(
        (SIDE, SIDE), Image.Resampling.LANCZOS if side >= SIDE else Image.Resampling.NEAREST
    )
    origin = album.entries[picture.file]["made_from"][0] | {"thumbnail_of": picture.file}
    return album.add_all([Drawing(np.asarray(small), "thumbnail", picture.alt, origin, "jpeg")])[0]
