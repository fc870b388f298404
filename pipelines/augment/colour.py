"""Composes the colour augmentations of each image into the one linear map that the colour pass applies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.augment.philox import Floats

LUMA = np.array([0.299, 0.587, 0.114])  # weights of R, G and B in a grey value, ITU-R BT.601
MIDDLE = 127.5  # the grey that a change of contrast leaves unchanged


class ColourMap(NamedTuple):
    """Maps of the colours of n images: `colour = gain * linear @ colour + offset`, in values of 0 to 255.

    Attributes:
        gain: Factor on all channels, `[n]`.
        linear: Weights of the old channels in each new channel, `[n, C, C]`.
        grey: Result of `linear` for the grey value 1, `[n, C]`. Stored, because the sum of the columns is 1
            only up to rounding for changes that preserve grey.
        offset: Value added to each channel, `[n, C]`.
    """

    gain: Floats
    linear: Floats
    grey: Floats
    offset: Floats


def identity_colour_map(count: int, channels: int) -> ColourMap:
    """Returns `count` maps that change nothing."""
    return ColourMap(
        gain=np.ones(count),
        linear=np.broadcast_to(np.eye(channels), (count, channels, channels)),
        grey=np.ones((count, channels)),
        offset=np.zeros((count, channels)),
    )


def precompose_matrices(after: ColourMap, matrices: Floats) -> ColourMap:
    """Returns the map that first applies any linear maps, then another.

    Args:
        after: The map that follows.
        matrices: float64 `[n, C, C + 1]`: `colour = matrix @ (*colour, 1)`.
    """
    linear = multiply(after.linear, matrices[..., :-1])
    shift = multiply(after.linear, matrices[..., -1:])[..., 0]  # [n, C]
    return ColourMap(after.gain, linear, linear.sum(axis=-1), after.gain[:, None] * shift + after.offset)


def multiply(left: Floats, right: Floats) -> Floats:
    """Multiplies matrices, `[n, C, K]` and `[n, K, D]`.

    For matrices this small, that is faster than `@`; and it rounds alike on every processor.
    """
    product = left[:, :, :1] * right[:, :1]
    for k in range(1, left.shape[-1]):
        product += left[:, :, k : k + 1] * right[:, k : k + 1]
    return product


def to_matrices(colour_map: ColourMap) -> NDArray[np.float32]:
    """Converts maps to the matrices of the colour pass.

    Returns:
        float32 `[n, C, C + 1]`: `colour = matrix @ (*colour, 1)`, before it is clipped to 0 to 255.
    """
    linear = colour_map.gain[:, None, None] * colour_map.linear
    return np.concatenate([linear, colour_map.offset[..., None]], axis=-1).astype(np.float32)
