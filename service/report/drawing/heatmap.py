"""Heatmaps as pictures: brought to a scale, enlarged smoothly, coloured; and what a heatmap shows in figures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.report.drawing.album import Drawing
from service.report.drawing.colours import SEQUENTIAL, shaded, signed

SIDE = 96  # pixels of a heatmap's longer side; the page enlarges it further


def resized(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """A map `[h, w]` at another size, linear between the centres of its cells."""
    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=None))


def shown_size(height: int, width: int) -> tuple[int, int]:
    """At which size heatmaps of images `(height, width)` are stored."""
    factor = SIDE / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def heat(values: NDArray[np.float32], size: tuple[int, int], limit: float | None = None) -> NDArray[np.uint8]:
    """Draws a heatmap.

    Args:
        values: float `[h, w]`, at least 0.
        size: Height and width of the images it belongs to.
        limit: Which value is the brightest colour; None for the largest of this map.

    Returns:
        uint8 `[height, width]`, places in `colours.SEQUENTIAL`; a map of zeros is dark all over.
    """
    highest = float(values.max()) if limit is None else limit
    shares = values / highest if highest > 0 else np.zeros_like(values)
    return shaded(resized(shares, *shown_size(*size)))


def diverging(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draws values of both signs, the larger of both extremes in full colour: places in `colours.DIVERGING`."""
    limit = float(np.abs(values).max())
    return signed(resized(values, *shown_size(*size)), limit if limit > 0 else 1.0)


def drawing(
    values: NDArray[np.float32], size: tuple[int, int], stem: str, alt: str, origin: dict[str, object]
) -> Drawing:
    """A heatmap on its own scale as a picture."""
    return Drawing(heat(values, size), stem, alt, dict(origin), "png", SEQUENTIAL)


def where(values: NDArray[np.float32]) -> str:
    """Where a map has its maximum, in words: `brightest in the upper left`; `empty` for a map of zeros."""
    if not values.max() > 0:
        return "empty"
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    down = ("upper", "middle", "lower")[min(2, int(3 * (row + 0.5) / values.shape[0]))]
    right = ("left", "middle", "right")[min(2, int(3 * (column + 0.5) / values.shape[1]))]
    return f"brightest in the {down} {right}" if down != right else "brightest in the centre"
