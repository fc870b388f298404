"""Palettes: 254 shades each, and two further entries for frames and for inactive channels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.report.rasters import SHADES

# Anchors of viridis (S. van der Walt and N. Smith, 2015): even in lightness, safe for the colour-blind.
_VIRIDIS = (
    (68, 1, 84),
    (71, 45, 123),
    (59, 82, 139),
    (44, 114, 142),
    (33, 145, 140),
    (40, 174, 128),
    (94, 201, 98),
    (173, 220, 48),
    (253, 231, 37),
)
# RdBu of C. Brewer (2002), from blue to red: safe for the colour-blind, white in the middle.
_BLUE_RED = (
    (5, 48, 97),
    (33, 102, 172),
    (67, 147, 195),
    (146, 197, 222),
    (209, 229, 240),
    (247, 247, 247),
    (253, 219, 199),
    (244, 165, 130),
    (214, 96, 77),
    (178, 24, 43),
    (103, 0, 31),
)
# Colour between tiles.
FRAME = (24, 27, 34)
# Colour of inactive channels: a grey that no colour map contains.
INACTIVE = (112, 116, 124)
# Palette index of the frame.
FRAME_INDEX = SHADES
# Palette index of inactive channels.
INACTIVE_INDEX = SHADES + 1
# Palette index of zero in the diverging palette, whose indices 0 to 252 are symmetric about it.
ZERO_INDEX = 126


def _interpolate(anchors: tuple[tuple[int, int, int], ...], count: int) -> NDArray[np.uint8]:
    """Interpolates `count` colours evenly between anchors, uint8 `[count, 3]`."""
    positions = np.linspace(0, 1, count)
    anchor_positions = np.linspace(0, 1, len(anchors))
    channels = [np.interp(positions, anchor_positions, channel) for channel in zip(*anchors, strict=True)]
    return np.asarray(np.rint(np.stack(channels, axis=1)), np.uint8)


def _build_palette(shades: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Appends the colours of frames and inactive channels to `SHADES` shades, uint8 `[256, 3]`."""
    return np.concatenate([shades, np.array([FRAME, INACTIVE], np.uint8)])


# Viridis in 256 colours, without the special entries.
VIRIDIS = _interpolate(_VIRIDIS, 256)
# From low (dark) to high (bright).
SEQUENTIAL = _build_palette(_interpolate(_VIRIDIS, SHADES))
# From negative (blue) through zero (white) to positive (red); the last shade is repeated to fill the palette.
DIVERGING = _build_palette(
    np.concatenate([_interpolate(_BLUE_RED, SHADES - 1), np.array(_BLUE_RED[-1:], np.uint8)])
)
# From black to white.
GREY = _build_palette(_interpolate(((0, 0, 0), (255, 255, 255)), SHADES))


def apply_viridis(levels: np.ndarray) -> np.ndarray:
    """Looks up the colours of viridis for levels 0 to 255: uint8 `[...]` to uint8 `[..., 3]`."""
    return np.asarray(VIRIDIS[levels])


def quantize(values: np.ndarray) -> np.ndarray:
    """Quantizes values in [0, 1] to palette indices: float `[...]`, clipped, to uint8 `[...]`."""
    return np.asarray(np.rint(np.clip(values, 0, 1) * (SHADES - 1)), np.uint8)


def quantize_signed(values: np.ndarray, limit: float) -> np.ndarray:
    """Quantizes values to indices of the diverging palette, with zero at `ZERO_INDEX`.

    Args:
        values: Values of both signs, float `[...]`.
        limit: Absolute value of the fullest colours, above 0; larger values are clipped.

    Returns:
        uint8 `[...]`, 0 to 252.
    """
    return (np.rint(np.clip(values / limit, -1, 1) * ZERO_INDEX) + ZERO_INDEX).astype(np.uint8)
