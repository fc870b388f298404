"""Random boxes in the unit square, and the pixels that lie in them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.augment.philox import Floats


class Boxes(NamedTuple):
    """A box in each of n images, as fractions of their sides: `[n]` each."""

    top: Floats
    left: Floats
    height: Floats
    width: Floats


def scale_linear(low: float, high: float, number: Floats) -> Floats:
    """Maps a number in [0, 1) to `[low, high)`."""
    return low + (high - low) * number


def scale_log(low: float, high: float, number: Floats) -> Floats:
    """Maps a number in [0, 1) to `[low, high)`, uniformly in the logarithm."""
    return np.exp(scale_linear(np.log(low), np.log(high), number))


def place_boxes(area: Floats, ratio: Floats, y: Floats, x: Floats) -> Boxes:
    """Places boxes of given area and shape inside the unit square; a side that is too long is cut to 1.

    Args:
        area: Fraction of the square, `[n]`.
        ratio: Width over height, both as fractions of the sides of the image, `[n]`.
        y: Position between the upper and the lower edge, `[n]` in [0, 1].
        x: Position between the left and the right edge, `[n]` in [0, 1].
    """
    height = np.minimum(np.sqrt(area / ratio), 1.0)
    width = np.minimum(np.sqrt(area * ratio), 1.0)
    return Boxes(y * (1.0 - height), x * (1.0 - width), height, width)


def to_corners(boxes: Boxes, is_present: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Converts boxes to corners, clipped at the edges of the image.

    Args:
        boxes: Boxes of n images.
        is_present: Whether an image has a box, bool `[n]`.

    Returns:
        float32 `[n, 4]`: `(ymin, xmin, ymax, xmax)` in [0, 1]; zeros for images without a box.
    """
    top, left, height, width = boxes
    corners = np.stack([top, left, top + height, left + width], axis=-1)
    return np.where(is_present[:, None], np.clip(corners, 0.0, 1.0), 0.0).astype(np.float32)


def box_mask(corners: Any, height: int, width: int) -> Any:
    """Tells which pixels have their center in the box of their image.

    Args:
        corners: Tensor float32 `[B, 4]`: `(ymin, xmin, ymax, xmax)` in [0, 1].
        height: Height of the images in pixels.
        width: Width of the images in pixels.

    Returns:
        bool tensor `[B, H, W]`.
    """
    import tensorflow as tf

    top, left, bottom, right = (corners[:, i, None, None] for i in range(4))
    y = ((tf.range(height, dtype=tf.float32) + 0.5) / height)[:, None]
    x = (tf.range(width, dtype=tf.float32) + 0.5) / width
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)
