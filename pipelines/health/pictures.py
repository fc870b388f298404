"""Reads images of a shard set as small pictures, for the pages that show them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pipelines.errors import DataError
from pipelines.health.thumbnails import decode_image
from pipelines.input.reader import ShardReader
from pipelines.open_file import DAMAGE_FIX
from pipelines.remote.uri import Location
from pipelines.shards.codec import Pixels, from_pillow, to_pillow

MAX_SIDE = 320  # pixels, enough for pictures next to each other


class PictureReader:
    """Reads images of any split, with their proportions.

    Args:
        directory: Path or URI of the shard set.
    """

    def __init__(self, directory: Location) -> None:
        self._directory = directory
        self._readers: dict[str, ShardReader] = {}

    def read(self, split: str, row: int) -> Pixels:
        """Reads one image, scaled down to at most `MAX_SIDE` pixels.

        Args:
            split: Split of the image.
            row: Row number in that split.

        Returns:
            uint8 `[H, W, 1 or 3]`.

        Raises:
            DataError: The image is damaged.
        """
        if split not in self._readers:
            self._readers[split] = ShardReader(self._directory, split)
        reader = self._readers[split]
        (image,) = reader.read_images([row])
        (shape,) = reader.read_shapes([row]).tolist()
        try:
            pixels = decode_image(image, shape, reader.manifest.encoding)
        except ValueError as error:
            received = f"split={split} row={row}: {error}"
            raise DataError("images that can be decoded", received, DAMAGE_FIX) from None
        if max(pixels.shape[:2]) <= MAX_SIDE:
            return np.ascontiguousarray(pixels)
        picture = to_pillow(pixels)
        picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
        return from_pillow(picture)
