"""Types of the data that passes between stages: an `Example` goes into the shards, a `Batch` comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import pyarrow as pa
import xxhash

Box = tuple[float, float, float, float]  # (ymin, xmin, ymax, xmax)
Shape = tuple[int, int, int]  # (height, width, channels)


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled image as its source holds it.

    Attributes:
        image: Content of the encoded file (JPEG, PNG, BMP, GIF or WebP).
        label: Index into the source's classes.
        id: Stable and unique name of the image: its path inside the source.
        bbox: Bounding box of the object that decides the class, `(ymin, xmin, ymax, xmax)` in [0, 1], or None
            where the source has none.
    """

    image: bytes
    label: int
    id: str
    bbox: Box | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A source image that does not go into the shards, and the reason."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a shard: an `Example` in the encoding of the shard set.

    Attributes:
        image: Content of the encoded file, or the pixels themselves (uint8 `[H, W, C]` in row order) with the
            encoding `raw`.
        label: Index into the classes of the shard set.
        id: Name of the image in its source.
        shape: `(height, width, channels)` in pixels.
        bbox: Bounding box as in the source, relative to the image and so independent of its size.
    """

    image: bytes
    label: int
    id: str
    shape: Shape
    bbox: Box | None = None


def compute_checksum(image: bytes | memoryview, label: int) -> int:
    """Returns the XXH3-64 of an image, seeded with its label; readers compare every row with it."""
    return xxhash.xxh3_64_intdigest(image, seed=label)


BBOX_COLUMN = "evidence"  # name of the bounding box in shard sets of version 2

RECORD_SCHEMA = pa.schema(
    [
        pa.field("image", pa.binary(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field(BBOX_COLUMN, pa.list_(pa.float32(), 4), nullable=True),
        pa.field("shape", pa.list_(pa.int32(), 3), nullable=False),
        pa.field("checksum", pa.uint64(), nullable=False),
    ]
)


class _Batch(TypedDict):
    label: Any
    weight: Any
    row: Any


class Batch(_Batch, total=False):
    """The input of one training step. Always B rows: the last batch of an epoch is padded with weight 0.

    The parameters of an augmentation are present if it is on (see `pipelines.augment.draw`).

    Attributes:
        label: int32 `[B]`, class indices.
        weight: float32 `[B]`, 0 for padding and 1 otherwise.
        row: int64 `[B]`, row numbers in the split; -1 for padding.
        image: uint8 `[B, H, W, C]`; absent if the images are already in accelerator memory (see
            `pipelines.input.cache`).
        window: int32 `[B, 4]`, the part of each stored image that was decoded, where only a part is: top,
            left, height, width in pixels.
        affine: float32 `[B, 2, 3]`, maps output to input coordinates in the unit square.
        colour: float32 `[B, C, C + 1]`, a linear map of the colours and an offset.
        erase: float32 `[B, 4]`, the box `(ymin, xmin, ymax, xmax)` in [0, 1] to erase; empty for none.
        mix: float32 `[B]`, share of the image itself in a blend with its neighbour in the batch; 1 for none.
        cut: float32 `[B, 4]`, the box to fill from the neighbour; empty for none.
    """

    image: Any
    window: Any
    affine: Any
    colour: Any
    erase: Any
    mix: Any
    cut: Any
