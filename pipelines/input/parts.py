"""Divides batches of large images into parts, so that the memory that decoding takes has a limit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Parts of a pipeline that are in memory at a time: two are decoded, one has been read, one is being read.
IN_FLIGHT = 4


def plan_parts(shapes: NDArray[np.int32], channels: int, budget: float) -> list[slice]:
    """Divides a batch into consecutive parts that fit into the budget of a pipeline.

    An image counts with all of its pixels and with its file, which is at most as large as the pixels it
    stores. An image that exceeds the budget by itself is a part of its own.

    Args:
        shapes: Height, width and channels of the stored images, int32 `[n, 3]`; zeros for padding.
        channels: Channels of the decoded images.
        budget: Bytes that the parts in flight may take together, decoded and encoded.

    Returns:
        Ranges of positions that cover 0 to n, none of them empty; one range for n = 0.
    """
    limit = budget / IN_FLIGHT
    pixels = shapes[:, :2].astype(np.int64).prod(axis=1)
    ends = np.cumsum(pixels * (shapes[:, 2] + channels))  # bytes up to each image, int64 [n]
    count = len(shapes)
    if not count or ends[-1] <= limit:
        return [slice(0, count)]
    parts = []
    start = 0
    while start < count:
        before = ends[start - 1] if start else 0
        fitting = int(np.searchsorted(ends, before + limit, side="right"))
        stop = max(fitting, start + 1)
        parts.append(slice(start, stop))
        start = stop
    return parts
