"""Draws heatmaps: scales, resizes and quantizes them to palette indices, and describes them as text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.report.drawing.album import Drawing
from service.report.drawing.colours import SEQUENTIAL, quantize, quantize_signed
from service.report.rasters import resize_bilinear

# Longer side of a stored heatmap, in pixels; the page enlarges it further.
SIDE = 96


def fit_size(height: int, width: int) -> tuple[int, int]:
    """Computes the size at which the heatmap of an image `(height, width)` is stored."""
    factor = SIDE / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def quantize_heatmap(
    values: NDArray[np.float32], size: tuple[int, int], limit: float | None = None
) -> NDArray[np.uint8]:
    """Resizes a heatmap and quantizes it.

    Args:
        values: float `[h, w]`, at least 0.
        size: Height and width of the image that the heatmap explains.
        limit: Value of the brightest colour; None takes the largest value of this map.

    Returns:
        uint8 `[height, width]`, indices of `colours.SEQUENTIAL`; a map of zeros is dark all over.
    """
    highest = float(values.max()) if limit is None else limit
    fractions = values / highest if highest > 0 else np.zeros_like(values)
    return quantize(resize_bilinear(fractions, *fit_size(*size)))


def quantize_signed_map(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resizes a map of both signs and quantizes it.

    Args:
        values: float `[h, w]`; the largest absolute value gets the fullest colour.
        size: Height and width of the image that the map explains.

    Returns:
        uint8 `[height, width]`, indices of `colours.DIVERGING`.
    """
    limit = float(np.abs(values).max())
    return quantize_signed(resize_bilinear(values, *fit_size(*size)), limit if limit > 0 else 1.0)


def build_drawing(
    values: NDArray[np.float32], size: tuple[int, int], stem: str, alt: str, origin: dict[str, object]
) -> Drawing:
    """Draws a heatmap on its own scale; the other arguments are those of `quantize_heatmap` and `Drawing`."""
    return Drawing(quantize_heatmap(values, size), stem, alt, dict(origin), "map", SEQUENTIAL)


def describe_peak(values: NDArray[np.float32]) -> str:
    """Describes the position of a map's maximum: `brightest in the upper left`; `empty` for zeros."""
    if not values.max() > 0:
        return "empty"
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    height, width = values.shape
    vertical = ("upper", "middle", "lower")[min(2, int(3 * (row + 0.5) / height))]
    horizontal = ("left", "middle", "right")[min(2, int(3 * (column + 0.5) / width))]
    if vertical == horizontal:
        return "brightest in the centre"
    return f"brightest in the {vertical} {horizontal}"
