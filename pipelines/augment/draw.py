"""What happens to each image of a batch, as the arrays that `pipelines.augment.apply` takes. Pure NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.augment.colour import colour_matrices, colour_parameters, tints
from pipelines.augment.geometry import affine_matrices, affine_parameters, moves
from pipelines.augment.mix import cutmix_boxes, erased_boxes, mixup_shares
from pipelines.augment.philox import Floats, uniform
from pipelines.errors import ConfigError
from pipelines.spec import AugmentSpec, DataSpec

Parameters = NDArray[np.float32]


class _Kind(NamedTuple):
    """One kind of change: the shape of its parameters without the batch, and how they are drawn."""

    shape: tuple[int, ...]
    draw: Callable[[Floats, ArrayLike], Parameters]


def draw(spec: AugmentSpec, seed: int, epoch: int, rows: ArrayLike, data: DataSpec) -> dict[str, Parameters]:
    """Draws what happens to each image of a batch: a function of seed, epoch and row, in mixing also of whether there is a neighbour.

    The fixed cost of a call is far above that of an image: draw for many batches at once.

    Args:
        spec: The ranges.
        seed: 0 to 2**64 - 1.
        epoch: From 0.
        rows: Rows of the split in the order of the batch, `[n]`; -1 is padding, to which nothing happens.
        data: Size and channels of the images.

    Returns:
        The parameters that the spec turns on, float32 `[n, ...]`: those of `pipelines.records.Batch`, and no others.

    Raises:
        ConfigError: Images are mixed, and the batch is odd.
    """
    check_batch(spec, len(np.asarray(rows)))
    numbers = uniform(seed, epoch, rows)
    return {name: kind.draw(numbers, rows) for name, kind in _kinds(spec, data).items()}


def signature(spec: AugmentSpec, data: DataSpec) -> dict[str, tuple[tuple[int, ...], type[np.float32]]]:
    """Name, shape without the batch, and dtype of the parameters that `draw` returns."""
    return {name: (kind.shape, np.float32) for name, kind in _kinds(spec, data).items()}


def check_batch(spec: AugmentSpec, batch: int) -> None:
    """Checks that every image has a neighbour to be mixed with.

    Args:
        spec: The ranges.
        batch: Images per step of one replica: mixing never reaches across replicas.

    Raises:
        ConfigError: Images are mixed, and the batch is odd.
    """
    if batch % 2 and (spec.mixup or spec.cutmix):
        fix = f"use {batch - 1} or {batch + 1}" if batch > 1 else "use 2"
        raise ConfigError(
            "an even batch on every replica, where images are mixed in pairs", f"batch={batch}", fix
        )


def _kinds(spec: AugmentSpec, data: DataSpec) -> dict[str, _Kind]:
    """The kinds of change that a spec turns on."""
    aspect, channels = data.image_size[1] / data.image_size[0], data.channels
    kinds = {
        "affine": (
            moves(spec),
            (2, 3),
            lambda u, rows: affine_matrices(affine_parameters(spec, u, rows, aspect), aspect),
        ),
        "colour": (
            tints(spec, channels),
            (channels, channels + 1),
            lambda u, rows: colour_matrices(colour_parameters(spec, u, rows), channels),
        ),
        "erase": (spec.erase > 0, (4,), lambda u, rows: erased_boxes(spec, u, rows, aspect)),
        "mix": (spec.mixup > 0, (), lambda u, rows: mixup_shares(spec, u, rows)),
        "cut": (spec.cutmix > 0, (4,), lambda u, rows: cutmix_boxes(spec, u, rows)),
    }
    return {name: _Kind(shape, draw) for name, (on, shape, draw) in kinds.items() if on}
