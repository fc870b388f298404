"""Tiny images."""

from __future__ import annotations

import numpy as np
from shard_samples import encode_png, make_record

from pipelines.records import Record


def solid(value: int, size: tuple[int, int] = (2, 3)) -> bytes:
    """Returns a grey PNG of one value."""
    return encode_png(np.full(size, value, np.uint8))


def solids(rows: int) -> list[Record]:
    """Returns records whose row i is an image of the value 10 * i and of class i % 3."""
    return [
        make_record(np.full((2, 3), 10 * row, np.uint8), row % 3, f"folder/{row}.png") for row in range(rows)
    ]
