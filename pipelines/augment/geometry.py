"""Random affine parameters and crops, and the one matrix per image that they make."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.augment.philox import Floats, Number
from pipelines.spec import AugmentSpec


class Boxes(NamedTuple):
    """A box in each of n images, in the unit square: `[n]` each."""

    top: Floats
    left: Floats
    height: Floats
    width: Floats


class AffineParameters(NamedTuple):
    """What happens to each of n images, in the terms of Keras' `ImageDataGenerator.apply_transform`.

    Attributes:
        theta: Rotation in degrees, `[n]`.
        tx: Shift along x as a fraction of the width, `[n]`.
        ty: Shift along y as a fraction of the height, `[n]`.
        shear: Shear angle in degrees, `[n]`.
        zx: Step along x per output pixel, `[n]`: above 1 shows more of the image, below 1 enlarges it.
        zy: The same along y, `[n]`.
        flip: Whether the result is mirrored left to right, bool `[n]`.
        flip_vertical: Whether the result is mirrored top to bottom, bool `[n]`.
        crop: The part of the image that all this happens to. What lies around it may still come into sight.
    """

    theta: Floats
    tx: Floats
    ty: Floats
    shear: Floats
    zx: Floats
    zy: Floats
    flip: NDArray[np.bool_]
    flip_vertical: NDArray[np.bool_]
    crop: Boxes


def moves(spec: AugmentSpec) -> bool:
    """Whether any of these changes is on, a change of the size among them."""
    return any(
        (
            spec.rotation,
            spec.shift,
            spec.shear,
            spec.zoom,
            spec.flip,
            spec.flip_vertical,
            spec.crop,
            spec.size,
        )
    )


def affine_parameters(
    spec: AugmentSpec, numbers: Floats, rows: ArrayLike, aspect: float = 1.0
) -> AffineParameters:
    """What happens to each image.

    Args:
        spec: The ranges.
        numbers: Of these rows, from `philox.uniform`.
        rows: Rows of the split, `[n]`; -1 is padding, to which nothing happens.
        aspect: Width over height of the images in pixels.
    """
    real = np.asarray(rows) >= 0
    spread = np.where(real, 2.0 * numbers[: Number.FLIP] - 1.0, 0.0)
    return AffineParameters(
        theta=spec.rotation * spread[Number.THETA],
        tx=spec.shift * spread[Number.TX],
        ty=spec.shift * spread[Number.TY],
        shear=spec.shear * spread[Number.SHEAR],
        zx=1.0 + spec.zoom * spread[Number.ZX],
        zy=1.0 + spec.zoom * spread[Number.ZY],
        flip=real & spec.flip & (numbers[Number.FLIP] < 0.5),
        flip_vertical=real & spec.flip_vertical & (numbers[Number.FLIP_VERTICAL] < 0.5),
        crop=_crops(spec, numbers, real, aspect),
    )


def _crops(spec: AugmentSpec, numbers: Floats, real: NDArray[np.bool_], aspect: float) -> Boxes:
    """Random resized crops (Szegedy et al., "Going deeper with convolutions", 2015); the whole image where there is none."""
    if spec.crop is None:
        zero, one = np.zeros(len(real)), np.ones(len(real))
        return Boxes(zero, zero, one, one)
    area = between(*spec.crop, numbers[Number.CROP_AREA])
    ratio = log_between(*spec.crop_ratio, numbers[Number.CROP_RATIO])
    boxes = placed(area, ratio / aspect, numbers[Number.CROP_Y], numbers[Number.CROP_X])
    return Boxes(
        *(np.where(real, side, whole) for side, whole in zip(boxes, (0.0, 0.0, 1.0, 1.0), strict=True))
    )


def between(low: float, high: float, number: Floats) -> Floats:
    """A number in [0, 1) brought to `[low, high)`."""
    return low + (high - low) * number


def log_between(low: float, high: float, number: Floats) -> Floats:
    """The same, uniform in the logarithm."""
    return np.exp(between(np.log(low), np.log(high), number))


def placed(area: Floats, ratio: Floats, y: Floats, x: Floats) -> Boxes:
    """Boxes of some area and shape, somewhere inside the unit square; a side that is too long is cut down to 1.

    Args:
        area: Share of the square, `[n]`.
        ratio: Width over height, both as fractions of the sides of the image, `[n]`.
        y: Where between the upper and the lower edge, `[n]` in [0, 1].
        x: Where between the left and the right edge, `[n]` in [0, 1].
    """
    height, width = np.minimum(np.sqrt(area / ratio), 1.0), np.minimum(np.sqrt(area * ratio), 1.0)
    return Boxes(y * (1.0 - height), x * (1.0 - width), height, width)


def affine_matrices(parameters: AffineParameters, aspect: float = 1.0) -> NDArray[np.float32]:
    """The matrices that `pipelines.augment.apply.warp` takes: crop x rotation x shift x shear x zoom x flips.

    They map the place of an output pixel to the place in the input that it shows; all but the crop go about
    the centre. Places are `(x, y)` in the unit square: x to the right, y down, the centre of pixel i of n at
    `(i + 0.5) / n`.

    Args:
        parameters: Of n images.
        aspect: Width over height in pixels, so that a rotation keeps right angles right on images that are not square.

    Returns:
        float32 `[n, 2, 3]`: `input = matrix @ (x, y, 1)`.
    """
    theta, shear = np.deg2rad(parameters.theta), np.deg2rad(parameters.shear)
    cos, sin, cos_shear, sin_shear = np.cos(theta), np.sin(theta), np.cos(shear), np.sin(shear)
    zx = np.where(parameters.flip, -parameters.zx, parameters.zx)
    zy = np.where(parameters.flip_vertical, -parameters.zy, parameters.zy)
    tx, ty, crop = (
        parameters.tx * aspect,
        parameters.ty,
        parameters.crop,
    )  # in units of the height, as the rotation
    # rotation [[cos, -sin], [sin, cos]] @ shear [[1, -sin_shear], [0, cos_shear]] @ diag(zx, zy)
    a, b = cos * zx, (-cos * sin_shear - sin * cos_shear) * zy / aspect
    d, e = sin * zx * aspect, (-sin * sin_shear + cos * cos_shear) * zy
    c = (cos * tx - sin * ty) / aspect + 0.5 - (0.5 * a + 0.5 * b)
    f = sin * tx + cos * ty + 0.5 - (0.5 * d + 0.5 * e)
    matrices = np.empty((len(theta), 2, 3), np.float32)
    matrices[:, 0] = np.stack([a * crop.width, b * crop.width, crop.left + c * crop.width], axis=-1)
    matrices[:, 1] = np.stack([d * crop.height, e * crop.height, crop.top + f * crop.height], axis=-1)
    return matrices
