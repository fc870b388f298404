"""Resampling and quantization of small maps, shared by `analysis` and `drawing`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Shades of a palette. A palette of 256 entries has two more: one for frames, one for inactive channels.
SHADES = 254
# Longest side of a channel's tile on a sheet, in pixels.
MAX_TILE_SIDE = 64


def compute_shrink_factor(height: int, width: int, max_side: int = MAX_TILE_SIDE) -> int:
    """Returns the smallest whole factor that brings both sides down to at most `max_side` pixels."""
    return max(1, -(-max(height, width) // max_side))


def resize_bilinear(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resizes a map `[h, w]` to float32 `[height, width]`, bilinearly between the centres of its cells."""
    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=None))


def repeat_pixels(tiles: np.ndarray, min_side: int) -> np.ndarray:
    """Enlarges tiles by a whole factor, until the longer side has at least `min_side` pixels.

    Args:
        tiles: Tiles of one size, `[N, H, W, ...]`.
        min_side: Smallest length of the longer side, in pixels.

    Returns:
        `[N, H * factor, W * factor, ...]`; the argument itself if it is large enough.
    """
    factor = -(-min_side // max(tiles.shape[1:3]))
    if factor <= 1:
        return tiles
    return tiles.repeat(factor, axis=1).repeat(factor, axis=2)


def average_blocks(tiles: np.ndarray, max_side: int) -> np.ndarray:
    """Shrinks tiles by a whole factor, until the longer side has at most `max_side` pixels.

    Args:
        tiles: Floats `[N, H, W]`; rows or columns missing from the last block repeat the edge.
        max_side: Largest length of the longer side, in pixels.

    Returns:
        Block averages `[N, ceil(H / factor), ceil(W / factor)]`; the argument itself if it is small enough.
    """
    count, height, width = tiles.shape
    factor = compute_shrink_factor(height, width, max_side)
    if factor == 1:
        return tiles
    padded = np.pad(tiles, ((0, 0), (0, -height % factor), (0, -width % factor)), mode="edge")
    rows = padded.shape[1] // factor
    columns = padded.shape[2] // factor
    blocks = padded.reshape(count, rows, factor, columns, factor)
    return np.asarray(blocks.mean(axis=(2, 4)))
