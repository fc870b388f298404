"""Draws the crops that activate a channel most as one picture, and kernels as small images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.report.drawing.colours import FRAME
from service.report.drawing.sheets import tile_images

CROP_SIDE = 56  # side of the square that a crop fills, in pixels
CROP_COLUMNS = 3
CROP_COUNT = 9  # squares; those without a crop stay empty
GAP = 3  # pixels between the squares
MARK_SIDE = 10  # smallest side of a mark, in pixels
WHITE = 255
BLACK = 0


def draw_crops(crops: Sequence[NDArray[np.uint8]], marks: Sequence[tuple[float, float] | None]) -> np.ndarray:
    """Draws up to nine crops in rows of three, the strongest first, each as large as its square allows.

    Args:
        crops: uint8 `[h, w, 1 or 3]`, of any sizes.
        marks: For each crop the place in it that is framed, down and across from 0 to 1; None for no frame.

    Returns:
        uint8 `[H, W, 3]`.
    """
    tiles = [draw_crop(crop, mark) for crop, mark in zip(crops, marks, strict=True)]
    blank = np.full((CROP_SIDE, CROP_SIDE, 3), FRAME, np.uint8)
    tiles += [blank] * (CROP_COUNT - len(tiles))
    return tile_images(np.stack(tiles), CROP_COLUMNS, GAP)


def draw_crop(crop: NDArray[np.uint8], mark: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Draws one crop, centred in its square; uint8 `[CROP_SIDE, CROP_SIDE, 3]`."""
    height, width = crop.shape[:2]
    factor = CROP_SIDE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    # Whole pixels remain visible in enlarged crops.
    resampling = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    picture = Image.fromarray(np.broadcast_to(crop, (height, width, 3)).copy()).resize(size, resampling)
    pixels = np.array(picture)
    if mark is not None:
        _draw_mark(pixels, mark)
    square = np.empty((CROP_SIDE, CROP_SIDE, 3), np.uint8)
    square[:] = FRAME
    top = (CROP_SIDE - size[1]) // 2
    left = (CROP_SIDE - size[0]) // 2
    square[top : top + size[1], left : left + size[0]] = pixels
    return square


def _draw_mark(pixels: NDArray[np.uint8], mark: tuple[float, float]) -> None:
    """Draws a white frame inside a black one around a place."""
    height, width = pixels.shape[:2]
    for margin, value in ((0, BLACK), (1, WHITE)):
        side = MARK_SIDE - 2 * margin
        top = min(max(round(mark[0] * height - MARK_SIDE / 2), 0), max(height - MARK_SIDE, 0)) + margin
        left = min(max(round(mark[1] * width - MARK_SIDE / 2), 0), max(width - MARK_SIDE, 0)) + margin
        inside = pixels[top + 1 : top + side - 1, left + 1 : left + side - 1].copy()
        pixels[top : top + side, left : left + side] = value
        pixels[top + 1 : top + side - 1, left + 1 : left + side - 1] = inside


def compose_kernels(kernel: NDArray[np.floating], limit: float) -> NDArray[np.uint8]:
    """Composes kernels over colours as images: grey is zero, brighter than grey is positive.

    Args:
        kernel: float `[h, w, 1 or 3, filters]`.
        limit: Absolute value of the largest brightness and of black.

    Returns:
        uint8 `[filters, h, w, 1 or 3]`.
    """
    levels = np.clip(kernel / limit, -1, 1) * 127 + 128
    return np.asarray(np.moveaxis(levels, -1, 0).round(), np.uint8)
