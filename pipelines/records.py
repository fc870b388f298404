"""What travels between the parts: an `Example` into the shards, a `Batch` out of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import pyarrow as pa
import xxhash

Box = tuple[float, float, float, float]
Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled image as its source holds it.

    Attributes:
        image: The encoded file (JPEG, PNG, BMP, GIF or WebP).
        label: Index into the source's classes.
        id: Stable and unique within the source: the path inside it.
        evidence: Box that decides the class, `(ymin, xmin, ymax, xmax)` in [0, 1], where known.
    """

    image: bytes
    label: int
    id: str
    evidence: Box | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A source image that was not taken, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a shard: an `Example` in the encoding of the shard set.

    Attributes:
        image: The encoded file, or the pixels themselves (uint8 `[H, W, C]` in row order) where the encoding is `raw`.
        label: Index into the classes.
        id: As in the source.
        shape: `(height, width, channels)` in pixels.
        evidence: As in the source.
    """

    image: bytes
    label: int
    id: str
    shape: Shape
    evidence: Box | None = None


def compute_checksum(image: bytes | memoryview, label: int) -> int:
    """XXH3-64 of an image with its label as the seed: what a reader holds every row against."""
    return xxhash.xxh3_64_intdigest(image, seed=label)


RECORD_SCHEMA = pa.schema(
    [
        pa.field("image", pa.binary(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("evidence", pa.list_(pa.float32(), 4), nullable=True),
        pa.field("shape", pa.list_(pa.int32(), 3), nullable=False),
        pa.field("checksum", pa.uint64(), nullable=False),
    ]
)


class _Batch(TypedDict):
    label: Any
    weight: Any
    row: Any


class Batch(_Batch, total=False):
    """What a training step takes. Always B rows: the last batch of an epoch is padded with weight 0.

    The optional parameters of augmentation are there where their kind of change is on (see `pipelines.augment.draw`).

    Attributes:
        label: int32 `[B]`.
        weight: float32 `[B]`, 0 for padding and 1 otherwise.
        row: int64 `[B]`, the row of the split; -1 for padding.
        image: uint8 `[B, H, W, C]`; not there where the images already lie in accelerator memory (see `pipelines.input.cache`).
        affine: float32 `[B, 2, 3]`, output to input in the unit square.
        colour: float32 `[B, C, C + 1]`, a linear map of the colours and what is added.
        erase: float32 `[B, 4]`, the box `(ymin, xmin, ymax, xmax)` in [0, 1] that is blotted out; empty for none.
        mix: float32 `[B]`, the share of the image itself in a blend with its neighbour in the batch; 1 for none.
        cut: float32 `[B, 4]`, the box that the neighbour fills; empty for none.
    """

    image: Any
    affine: Any
    colour: Any
    erase: Any
    mix: Any
    cut: Any
