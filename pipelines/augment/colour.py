"""Random colours: the one linear map per image that brightness, contrast, saturation and hue make together."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.augment.philox import Floats, Number
from pipelines.spec import AugmentSpec

LUMA = np.array([0.299, 0.587, 0.114])  # weights of R, G and B in a grey value, ITU-R BT.601
MIDDLE = 127.5  # the grey that a change of contrast leaves as it is


class ColourParameters(NamedTuple):
    """What happens to the colours of each of n images.

    Attributes:
        brightness: Factor on the values, `[n]`.
        contrast: Factor on the distance from the middle grey, `[n]`.
        saturation: Factor on the distance of a colour from the grey of its luma, `[n]`; 0 is grey.
        hue: Turn about the grey axis in degrees, `[n]`; 120 makes green of red.
    """

    brightness: Floats
    contrast: Floats
    saturation: Floats
    hue: Floats


def tints(spec: AugmentSpec, channels: int) -> bool:
    """Whether any of these changes is on; saturation and hue mean nothing to grey images."""
    return bool(spec.brightness or spec.contrast or (channels == 3 and (spec.saturation or spec.hue)))


def colour_parameters(spec: AugmentSpec, numbers: Floats, rows: ArrayLike) -> ColourParameters:
    """What happens to the colours of each image.

    Args:
        spec: The ranges.
        numbers: Of these rows, from `philox.uniform`.
        rows: Rows of the split, `[n]`; -1 is padding, to which nothing happens.
    """
    spread = np.where(np.asarray(rows) >= 0, 2.0 * numbers - 1.0, 0.0)
    return ColourParameters(
        brightness=1.0 + spec.brightness * spread[Number.BRIGHTNESS],
        contrast=1.0 + spec.contrast * spread[Number.CONTRAST],
        saturation=1.0 + spec.saturation * spread[Number.SATURATION],
        hue=spec.hue * spread[Number.HUE],
    )


def colour_matrices(parameters: ColourParameters, channels: int) -> NDArray[np.float32]:
    """The maps that `pipelines.augment.apply.augmented` applies: brightness, contrast, saturation, hue, in this order.

    Saturation and hue keep every grey as it is, so that the order matters between brightness and contrast alone.
    The turn of the hue is a rotation in RGB: it keeps the mean of the channels, where HSV keeps the largest.

    Args:
        parameters: Of n images.
        channels: 1 or 3; with 1, brightness and contrast alone.

    Returns:
        float32 `[n, C, C + 1]`: `colour = matrix @ (*colour, 1)`, in values of 0 to 255, before they are clipped.
    """
    gain = (parameters.brightness * parameters.contrast)[:, None, None]
    offset = np.broadcast_to((MIDDLE * (1.0 - parameters.contrast))[:, None, None], (len(gain), channels, 1))
    linear = gain * _saturation_and_hue(parameters) if channels == 3 else gain
    return np.concatenate([linear, offset], axis=-1).astype(np.float32)


def _saturation_and_hue(parameters: ColourParameters) -> Floats:
    """Rodrigues' rotation about (1, 1, 1), after a blend with the luma, `[n, 3, 3]`."""
    angle, share = np.deg2rad(parameters.hue)[:, None, None], parameters.saturation[:, None, None]
    cross = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / np.sqrt(3.0)
    turned = np.cos(angle) * np.eye(3) + (1.0 - np.cos(angle)) / 3.0 + np.sin(angle) * cross
    return np.asarray((1.0 - share) * LUMA + share * turned)  # LUMA as rows: every channel becomes the luma
