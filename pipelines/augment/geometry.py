"""Composes the geometric augmentations of each image into the one affine matrix that the warp applies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.augment.philox import Floats

Entry = Floats | float


class Transform(NamedTuple):
    """Affine maps of n images, from positions in the output to the input positions that they show.

    `x_input = a * x + b * y + c` and `y_input = d * x + e * y + f`. Each entry is float64 `[n]`, or a number
    if it is the same for all images.
    """

    a: Entry
    b: Entry
    c: Entry
    d: Entry
    e: Entry
    f: Entry


IDENTITY = Transform(1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def compose(outer: Transform, inner: Transform) -> Transform:
    """Returns the maps that first do `inner`, then `outer`.

    Written out, because a fused multiply-add in a matrix product could change the last bit. This way, the
    matrices for a seed are the same on every processor.
    """
    return Transform(
        a=outer.a * inner.a + outer.b * inner.d,
        b=outer.a * inner.b + outer.b * inner.e,
        c=outer.a * inner.c + outer.b * inner.f + outer.c,
        d=outer.d * inner.a + outer.e * inner.d,
        e=outer.d * inner.b + outer.e * inner.e,
        f=outer.d * inner.c + outer.e * inner.f + outer.f,
    )


def compose_matrices(
    centered: Iterable[Transform], windows: Iterable[Transform], count: int, aspect: float
) -> NDArray[np.float32]:
    """Builds the matrices that `pipelines.augment.warp.warp` applies: windows x centered maps.

    A matrix maps the position of an output pixel to the position in the input that it shows. Positions are
    `(x, y)` in the unit square: x to the right, y down, the center of pixel i of n at `(i + 0.5) / n`.

    Args:
        centered: Maps about the center of the image, in units of its height, the outermost first.
        windows: Maps of the unit square, the outermost first: the part of the image that the centered maps
            apply to. What lies around it may still come into view.
        count: Number of images, n.
        aspect: Width over height in pixels, so that rotations keep right angles on any image.

    Returns:
        float32 `[n, 2, 3]`: `input = matrix @ (x, y, 1)`.
    """
    total = IDENTITY
    for transform in centered:
        total = compose(total, transform)
    total = _to_unit_square(total, aspect)
    for window in reversed(list(windows)):
        total = compose(window, total)
    matrices = np.empty((count, 2, 3), np.float32)
    for index, entry in enumerate(total):
        matrices[:, index // 3, index % 3] = entry
    return matrices


def _to_unit_square(transform: Transform, aspect: float) -> Transform:
    """Converts maps about the center, in units of the height, to maps of the unit square."""
    a, b, c, d, e, f = transform
    b = b / aspect
    d = d * aspect
    return Transform(a, b, c / aspect + 0.5 - (0.5 * a + 0.5 * b), d, e, f + 0.5 - (0.5 * d + 0.5 * e))
