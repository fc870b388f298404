"""Palettes: 254 shades each, and two places that no shade takes, for frames and for what has no signal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
SHADES, FRAME_PLACE, FLAT_PLACE = 254, 254, 255
MIDDLE = 126  # the place of 0 in the diverging palette, in which places 0 to 252 are symmetric
FRAME = (24, 27, 34)  # between tiles
FLAT = (112, 116, 124)  # a channel without a signal: a grey that no colour map holds


def _ramp(anchors: tuple[tuple[int, int, int], ...], count: int) -> NDArray[np.uint8]:
    places, at = np.linspace(0, 1, count), np.linspace(0, 1, len(anchors))
    return np.stack(
        [np.rint(np.interp(places, at, channel)) for channel in zip(*anchors, strict=True)], axis=1
    ).astype(np.uint8)


def _palette(shades: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([shades, np.array([FRAME, FLAT], np.uint8)])


VIRIDIS = _ramp(_VIRIDIS, 256)
SEQUENTIAL = _palette(_ramp(_VIRIDIS, SHADES))  # uint8 [256, 3]: low to high
DIVERGING = _palette(
    np.concatenate([_ramp(_BLUE_RED, SHADES - 1), np.array(_BLUE_RED[-1:], np.uint8)])
)  # negative, 0, positive
GREY = _palette(_ramp(((0, 0, 0), (255, 255, 255)), SHADES))


def coloured(levels: np.ndarray) -> np.ndarray:
    """Colours of viridis for levels 0 to 255: uint8 `[...]` to uint8 `[..., 3]`."""
    return np.asarray(VIRIDIS[levels])


def shaded(shares: np.ndarray) -> np.ndarray:
    """Places in a palette for shares of its range: float `[...]`, cut to [0, 1], to uint8 `[...]`."""
    return np.rint(np.clip(shares, 0, 1) * (SHADES - 1)).astype(np.uint8)


def signed(values: np.ndarray, limit: float) -> np.ndarray:
    """Places in the diverging palette: `-limit` is its first, 0 its middle, `limit` the mirror image of the first.

    Args:
        values: float `[...]`.
        limit: Above 0; what lies beyond it is cut.

    Returns:
        uint8 `[...]`, 0 to 252.
    """
    return (np.rint(np.clip(values / limit, -1, 1) * MIDDLE) + MIDDLE).astype(np.uint8)
