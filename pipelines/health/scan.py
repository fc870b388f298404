"""Reads every image of a shard once, and reduces it to a few numbers: 40 bytes an image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipelines.errors import DataError
from pipelines.health.thumbnails import SIDE, compute_hashes, compute_thumbnail, convert_to_grey
from pipelines.open_file import DAMAGE_FIX
from pipelines.shards.files import ShardFiles
from pipelines.shards.formats import ShardRows, open_shard
from pipelines.shards.manifest import ShardFile
from pipelines.shards.split_index import SetShard


class ShardFeatures(NamedTuple):
    """Features of the `n` images of a shard.

    Attributes:
        labels: int32 `[n]`, class indices.
        shapes: int32 `[n, 3]`, height, width and channels.
        contents: uint64 `[n]`, XXH3 of the stored bytes: equal for identical files.
        hashes: uint64 `[n]`, perceptual hashes: close for similar images.
        brightness: float32 `[n]`, mean luma of the thumbnail, 0 to 255.
        contrast: float32 `[n]`, standard deviation of the luma of the thumbnail.
        sample: uint8 `[<= n, SIDE, SIDE, 3]`, thumbnails of the first images in colour.
    """

    labels: NDArray[np.int32]
    shapes: NDArray[np.int32]
    contents: NDArray[np.uint64]
    hashes: NDArray[np.uint64]
    brightness: NDArray[np.float32]
    contrast: NDArray[np.float32]
    sample: NDArray[np.uint8]


def scan_shard(files: ShardFiles, set_shard: SetShard, encoding: str, sample_size: int) -> ShardFeatures:
    """Computes the features of all images of one shard.

    Args:
        files: Files of the shard set.
        set_shard: Entry of the shard.
        encoding: Encoding of the images, `raw` or that of image files.
        sample_size: Number of images whose thumbnails are returned.

    Raises:
        DataError: A file or an image is damaged.
    """
    shard = set_shard.shard
    if not shard.rows:
        return EMPTY
    with open_shard(files, shard) as rows:
        return _scan_rows(shard, rows, encoding, sample_size)


def _scan_rows(shard: ShardFile, rows: ShardRows, encoding: str, sample_size: int) -> ShardFeatures:
    sample_size = min(sample_size, rows.rows)
    sample = np.empty((sample_size, SIDE, SIDE, 3), np.uint8)
    thumbnails = np.empty((rows.rows, SIDE, SIDE, 1), np.uint8)
    contents = np.empty(rows.rows, np.uint64)
    shapes = rows.shapes.tolist()
    for row in range(rows.rows):
        image = rows.read_image(row)
        if not rows.is_sound(row, image):
            raise describe_damage(shard, rows, row, "image or label is not what was written")
        contents[row] = xxhash.xxh3_64_intdigest(image)
        try:
            if row < sample_size:
                sample[row] = compute_thumbnail(image, shapes[row], encoding, channels=3)
            else:
                thumbnails[row] = compute_thumbnail(image, shapes[row], encoding, channels=1)
        except ValueError as error:
            raise describe_damage(shard, rows, row, f"the image cannot be decoded: {error}") from None
    grey = thumbnails[..., 0].astype(np.float32)  # [n, SIDE, SIDE]
    grey[:sample_size] = convert_to_grey(sample)
    return ShardFeatures(
        labels=np.array(rows.labels),
        shapes=np.array(rows.shapes),
        contents=contents,
        hashes=compute_hashes(grey),
        brightness=grey.mean(axis=(1, 2)),
        contrast=grey.std(axis=(1, 2)),
        sample=sample,
    )


def describe_damage(shard: ShardFile, rows: ShardRows, row: int, reason: str) -> DataError:
    """Returns the error for a damaged image: file, row, id and reason."""
    received = f"{shard.file}: row={row} id={rows.id(row)}: {reason}"
    return DataError("images as they were written", received, DAMAGE_FIX)


EMPTY = ShardFeatures(
    labels=np.zeros(0, np.int32),
    shapes=np.zeros((0, 3), np.int32),
    contents=np.zeros(0, np.uint64),
    hashes=np.zeros(0, np.uint64),
    brightness=np.zeros(0, np.float32),
    contrast=np.zeros(0, np.float32),
    sample=np.zeros((0, SIDE, SIDE, 3), np.uint8),
)
