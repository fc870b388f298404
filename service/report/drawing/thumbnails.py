"""Thumbnails: small square crops of pictures, for links to a view or a report."""

from __future__ import annotations

import numpy as np
from PIL import Image

from service.report.drawing.album import Album, Drawing, Picture

# Side of a thumbnail, in pixels.
SIDE = 96
# Pictures with a larger ratio of width to height are sheets of tiles.
SHEET_ASPECT = 3 / 2
# Side of the crop from the first tiles of a sheet, in pixels.
SHEET_CROP = 96


def add_thumbnail(album: Album, picture: Picture) -> Picture:
    """Adds a square crop of a picture to its album: the middle of a photo, the first tiles of a sheet."""
    with Image.open(album.directory / picture.file) as image:
        pixels = image.convert("RGB")
    width, height = pixels.size
    if width > SHEET_ASPECT * height:
        side = min(width, height, SHEET_CROP)
        pixels = pixels.crop((0, 0, side, side))
    else:
        side = min(width, height)
        left = (width - side) // 2
        top = (height - side) // 2
        pixels = pixels.crop((left, top, left + side, top + side))
    resampling = Image.Resampling.LANCZOS if side >= SIDE else Image.Resampling.NEAREST
    thumbnail = pixels.resize((SIDE, SIDE), resampling)
    origin = album.entries[picture.file]["made_from"][0] | {"thumbnail_of": picture.file}
    return album.add_all([Drawing(np.asarray(thumbnail), "thumbnail", picture.alt, origin, "webp")])[0]
