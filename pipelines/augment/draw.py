"""Random affine parameters, stateless: those of an image depend on seed, epoch and row, on nothing else."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.spec import AugmentSpec

Words = NDArray[np.uint64]
Floats = NDArray[np.float64]

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


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
    """

    theta: Floats
    tx: Floats
    ty: Floats
    shear: Floats
    zx: Floats
    zy: Floats
    flip: NDArray[np.bool_]


def philox4x32(counter: ArrayLike, key: ArrayLike) -> Words:
    """Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

    Args:
        counter: 32-bit words, `[..., 4]`.
        key: 32-bit words, `[..., 2]`, broadcast against the counter.

    Returns:
        Random 32-bit words in uint64, `[..., 4]`.
    """
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, np.uint64), -1, 0)
    k0, k1 = np.moveaxis(np.asarray(key, np.uint64), -1, 0)
    for _ in range(ROUNDS):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # 32 x 32 bits: fits into 64
        c0, c1, c2, c3 = (product1 >> HALF) ^ c1 ^ k0, product1 & LOW, (product0 >> HALF) ^ c3 ^ k1, product0 & LOW
        k0, k1 = (k0 + KEY_STEPS[0]) & LOW, (k1 + KEY_STEPS[1]) & LOW
    return np.stack([c0, c1, c2, c3], axis=-1)


def uniform(seed: int, epoch: int, rows: ArrayLike) -> Floats:
    """Eight numbers in [0, 1) per row: the key is the seed, the counter is the row, the epoch and a block number.

    Args:
        seed: 0 to 2**64 - 1.
        epoch: 0 to 2**32 - 1.
        rows: Integers `[n]`.

    Returns:
        float64 `[n, 8]`.
    """
    row = np.asarray(rows, np.int64).astype(np.uint64)
    counter = np.zeros((len(row), 2, 4), np.uint64)
    counter[:, :, 0], counter[:, :, 1] = (row & LOW)[:, None], (row >> HALF)[:, None]
    counter[:, :, 2], counter[:, :, 3] = epoch, (0, 1)
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(len(row), 8) / 2.0**32


def draw_parameters(spec: AugmentSpec, seed: int, epoch: int, rows: ArrayLike) -> AffineParameters:
    """Draws what happens to each image. Every parameter has a number of its own, so that widening one range moves no other.

    Args:
        spec: The ranges.
        seed: 0 to 2**64 - 1.
        epoch: From 0.
        rows: Rows of the split, `[n]`; -1 is padding, to which nothing happens.
    """
    numbers = uniform(seed, epoch, rows)
    real = np.asarray(rows) >= 0
    spread = np.where(real[:, None], 2.0 * numbers - 1.0, 0.0)
    return AffineParameters(
        theta=spec.rotation * spread[:, 0],
        tx=spec.shift * spread[:, 1],
        ty=spec.shift * spread[:, 2],
        shear=spec.shear * spread[:, 3],
        zx=1.0 + spec.zoom * spread[:, 4],
        zy=1.0 + spec.zoom * spread[:, 5],
        flip=real & spec.flip & (numbers[:, 6] < 0.5),
    )


def affine_matrices(parameters: AffineParameters, aspect: float = 1.0) -> NDArray[np.float32]:
    """The matrices that `pipelines.augment.apply.warp` takes: rotation x shift x shear x zoom x flip, about the centre.

    They map the place of an output pixel to the place in the input that it shows. Places are `(x, y)` in the
    unit square: x to the right, y down, the centre of pixel i of n at `(i + 0.5) / n`.

    Args:
        parameters: Of n images.
        aspect: Width over height in pixels, so that a rotation keeps right angles right on images that are not square.

    Returns:
        float32 `[n, 2, 3]`: `input = matrix @ (x, y, 1)`.
    """
    theta, shear = np.deg2rad(parameters.theta), np.deg2rad(parameters.shear)
    rotation = _stack(np.cos(theta), -np.sin(theta), np.sin(theta), np.cos(theta))
    zero, one = np.zeros_like(theta), np.ones_like(theta)
    shearing = _stack(one, -np.sin(shear), zero, np.cos(shear))
    zoom = _stack(parameters.zx * np.where(parameters.flip, -1.0, 1.0), zero, zero, parameters.zy)
    to_pixels = np.array([aspect, 1.0])  # in units of the height
    linear = rotation @ shearing @ zoom * to_pixels / to_pixels[:, None]
    shift = np.stack([parameters.tx, parameters.ty], axis=-1)[..., None] * to_pixels[:, None]
    moved = rotation @ shift / to_pixels[:, None]
    centre = np.full((2, 1), 0.5)
    return np.concatenate([linear, moved + centre - linear @ centre], axis=-1).astype(np.float32)


def draw_affine(spec: AugmentSpec, seed: int, epoch: int, rows: ArrayLike, aspect: float = 1.0) -> NDArray[np.float32]:
    """Draws the matrix of each image: `affine_matrices` of `draw_parameters`.

    Args:
        spec: The ranges.
        seed: 0 to 2**64 - 1.
        epoch: From 0.
        rows: Rows of the split, `[n]`; -1 is padding and gets the identity.
        aspect: Width over height of the images in pixels.

    Returns:
        float32 `[n, 2, 3]`.
    """
    return affine_matrices(draw_parameters(spec, seed, epoch, rows), aspect)


def _stack(a: Floats, b: Floats, c: Floats, d: Floats) -> Floats:
    """The 2 x 2 matrices `[[a, b], [c, d]]`, `[n, 2, 2]`."""
    return np.stack([np.stack([a, b], axis=-1), np.stack([c, d], axis=-1)], axis=-2)
