"""What travels between the parts: an `Example` into the shards, a `Batch` out of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import pyarrow as pa

Box = tuple[float, float, float, float]


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


RECORD_SCHEMA = pa.schema(
    [
        pa.field("image", pa.binary(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("evidence", pa.list_(pa.float32(), 4), nullable=True),
    ]
)


class _Batch(TypedDict):
    image: Any
    label: Any
    weight: Any
    row: Any


class Batch(_Batch, total=False):
    """What a training step takes. Always B rows: the last batch of an epoch is padded with weight 0.

    Attributes:
        image: uint8 `[B, H, W, C]`.
        label: int32 `[B]`.
        weight: float32 `[B]`, 0 for padding and 1 otherwise.
        row: int64 `[B]`, the row of the split; -1 for padding.
        affine: float32 `[B, 2, 3]`, only where augmentation is on (see `pipelines.augment.draw`).
    """

    affine: Any
