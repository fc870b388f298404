"""Draws the parameters of a batch, as the arrays that `pipelines.augment.apply` takes. Pure NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.augment.base import (
    Augmentation,
    ColourAugmentation,
    GeometricAugmentation,
    ImageShape,
    MixingAugmentation,
    PixelAugmentation,
    RandomNumbers,
)
from pipelines.augment.colour import identity_colour_map, to_matrices
from pipelines.augment.decoded_crop import KEY as WINDOW
from pipelines.augment.decoded_crop import draw_windows, is_cropped_while_decoding
from pipelines.augment.geometry import Transform, compose_matrices
from pipelines.augment.philox import Floats, fold_in, uniform
from pipelines.augment.registry import AUGMENTATIONS
from pipelines.augment.spec import list_active
from pipelines.errors import ConfigError
from pipelines.spec import AugmentSpec, DataSpec

Parameters = NDArray[Any]

# Index, among the random numbers of this package, of the one that chooses how images are mixed.
MIXING_CHOICE = 21


class DrawnValues(NamedTuple):
    """What one augmentation drew for a batch of n images.

    Attributes:
        augmentation: The augmentation with its settings.
        values: Return value of its method `draw`.
        is_active: Whether it may change an image, bool `[n]`.
    """

    augmentation: Any
    values: Any
    is_active: NDArray[np.bool_]


def draw(
    spec: AugmentSpec,
    seed: int,
    epoch: int,
    rows: ArrayLike,
    data: DataSpec,
    shapes: NDArray[np.int32] | None = None,
) -> dict[str, Parameters]:
    """Draws the parameters of every augmentation for each image of a batch.

    They depend on seed, epoch and row only; for mixing, also on whether the image has a neighbour. The fixed
    cost of a call is far above that of an image: draw for many batches at once.

    Args:
        spec: Settings of all augmentations.
        seed: Any integer from 0 to 2**64 - 1.
        epoch: Number of the epoch, from 0.
        rows: Rows of the split in the order of the batch, `[n]`; -1 marks padding, which stays unchanged.
        data: Size and channels of the images.
        shapes: Height, width and channels of the stored images, int32 `[n, 3]`; needed only where images are
            cropped while they are decoded.

    Returns:
        The parameters of the augmentations that are on, float32 `[n, ...]`, by their key in
        `pipelines.records.Batch`, and the windows that are decoded, int32 `[n, 4]`.

    Raises:
        ConfigError: Images are mixed, and the batch is odd; or an augmentation from outside this package
            draws parameters of another shape than it declares.
    """
    count = len(np.asarray(rows))
    check_batch(spec, count)
    image = image_shape(data)
    drawn = draw_values(spec, seed, epoch, rows, image)
    geometric = [d for d in drawn if isinstance(d.augmentation, GeometricAugmentation)]
    colour = [d for d in drawn if isinstance(d.augmentation, ColourAugmentation)]
    parameters: dict[str, Parameters] = {}
    if is_cropped_while_decoding(spec):
        if shapes is None:
            raise ValueError("Expected the shapes of the stored images, which the crop depends on.")
        parameters[WINDOW] = draw_windows(spec, seed, epoch, rows, shapes)
    if geometric:
        parameters["affine"] = _compose_geometry(geometric, image, count)
    if colour:
        parameters["colour"] = _compose_colour(colour, image, count)
    for kind in (PixelAugmentation, MixingAugmentation):
        for augmentation, values, _ in drawn:
            if isinstance(augmentation, kind):
                parameters[augmentation.key] = _check_values(augmentation, values, count)
    return parameters


def signature(spec: AugmentSpec, data: DataSpec) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
    """Returns name, shape without the batch, and dtype of the parameters that `draw` returns."""
    active = list_active(spec, data.channels)
    shapes: dict[str, tuple[int, ...]] = {}
    if any(isinstance(augmentation, GeometricAugmentation) for augmentation in active):
        shapes["affine"] = (2, 3)
    if any(isinstance(augmentation, ColourAugmentation) for augmentation in active):
        shapes["colour"] = (data.channels, data.channels + 1)
    for kind in (PixelAugmentation, MixingAugmentation):
        shapes |= {a.key: a.shape for a in active if isinstance(a, kind)}
    types: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {}
    if is_cropped_while_decoding(spec):
        types[WINDOW] = ((4,), np.int32)
    return types | {name: (shape, np.float32) for name, shape in shapes.items()}


def check_is_on(spec: AugmentSpec, data: DataSpec) -> None:
    """Checks that an augmentation changes images at all.

    Args:
        spec: Settings of all augmentations.
        data: Size and channels of the images.

    Raises:
        ConfigError: Nothing is turned on.
    """
    if not signature(spec, data):
        raise ConfigError(
            "an augmentation", "augment with nothing turned on", "turn something on, for example flip=true"
        )


def check_batch(spec: AugmentSpec, batch: int) -> None:
    """Checks that every image has a neighbour to be mixed with.

    Args:
        spec: Settings of all augmentations.
        batch: Images per step of one replica; images are never mixed across replicas.

    Raises:
        ConfigError: Images are mixed, and the batch is odd.
    """
    is_mixed = any(isinstance(a, MixingAugmentation) for a in list_active(spec, 3))
    if batch % 2 and is_mixed:
        fix = f"use {batch - 1} or {batch + 1}" if batch > 1 else "use 2"
        raise ConfigError(
            "an even batch on every replica, where images are mixed in pairs", f"batch={batch}", fix
        )


def draw_values(
    spec: AugmentSpec, seed: int, epoch: int, rows: ArrayLike, image: ImageShape
) -> list[DrawnValues]:
    """Draws the values of each augmentation that is on, before they are composed into the arrays of a batch.

    Args:
        spec: Settings of all augmentations.
        seed: Any integer from 0 to 2**64 - 1.
        epoch: Number of the epoch, from 0.
        rows: Rows of the split in the order of the batch, `[n]`; -1 is padding. With mixing, n is even.
        image: Size and channels of the images.
    """
    active = list_active(spec, image.channels)
    shared = _draw_shared_numbers(active, seed, epoch, rows)
    is_image = np.asarray(rows) >= 0
    mixed = _choose_mixing(active, shared, is_image)
    result = []
    for augmentation in active:
        numbers = shared
        if type(augmentation) not in AUGMENTATIONS:
            own_seed = fold_in(seed, augmentation.name)
            numbers = uniform(own_seed, epoch, rows, _count_numbers(augmentation))
        is_active = mixed.get(augmentation.name, is_image)
        values = augmentation.draw(RandomNumbers(numbers, augmentation.streams, is_active), image)
        result.append(DrawnValues(augmentation, values, is_active))
    return result


def image_shape(data: DataSpec) -> ImageShape:
    """Returns size and channels of the images that are augmented."""
    height, width = data.image_size
    return ImageShape(height, width, data.channels)


def _count_numbers(augmentation: Augmentation) -> int:
    return 1 + max(augmentation.streams.values(), default=-1)


def _draw_shared_numbers(active: Sequence[Augmentation], seed: int, epoch: int, rows: ArrayLike) -> Floats:
    """Draws the numbers of the augmentations of this package, only as many as the active ones need."""
    counts = [_count_numbers(a) for a in active if type(a) in AUGMENTATIONS]
    if sum(isinstance(a, MixingAugmentation) for a in active) > 1:
        counts.append(1 + MIXING_CHOICE)
    return uniform(seed, epoch, rows, max(counts, default=0))


def _choose_mixing(
    active: Sequence[Augmentation], shared: Floats, is_image: NDArray[np.bool_]
) -> dict[str, NDArray[np.bool_]]:
    """Chooses the images that each mixing augmentation mixes, bool `[n]` by name.

    Neighbours are the images at positions 2i and 2i + 1. An image without one is not mixed.
    """
    mixing = [augmentation for augmentation in active if isinstance(augmentation, MixingAugmentation)]
    if not mixing:
        return {}
    is_paired = np.repeat(is_image.reshape(-1, 2).all(axis=1), 2)
    if len(mixing) == 1:
        return {mixing[0].name: is_paired}
    choice = np.floor(shared[MIXING_CHOICE] * len(mixing))
    return {augmentation.name: is_paired & (choice == i) for i, augmentation in enumerate(mixing)}


def _compose_geometry(drawn: list[DrawnValues], image: ImageShape, count: int) -> Parameters:
    """Composes the geometric augmentations into matrices `[n, 2, 3]`."""
    centered: list[Transform] = []
    windows: list[Transform] = []
    for augmentation, values, _ in drawn:
        transform = augmentation.transform(values, image)
        (windows if augmentation.in_unit_square else centered).append(transform)
    return compose_matrices(centered, windows, count, image.aspect)


def _compose_colour(drawn: list[DrawnValues], image: ImageShape, count: int) -> Parameters:
    """Composes the colour augmentations into matrices `[n, C, C + 1]`, from the last to the first."""
    colour_map = identity_colour_map(count, image.channels)
    for augmentation, values, _ in reversed(drawn):
        colour_map = augmentation.precompose(colour_map, values, image)
    return to_matrices(colour_map)


def _check_values(
    augmentation: PixelAugmentation | MixingAugmentation, values: Any, count: int
) -> Parameters:
    """Returns the parameters of an augmentation as float32, after checking their shape."""
    parameters = np.asarray(values, np.float32)
    expected = (count, *augmentation.shape)
    if parameters.shape != expected:
        raise ConfigError(
            f"parameters of shape {list(expected)} from {type(augmentation).__name__}.draw",
            f"shape={list(parameters.shape)}",
            "return an array of this shape, or correct the attribute `shape` of the class",
        )
    return parameters
