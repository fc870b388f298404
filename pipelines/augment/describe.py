"""Describes the drawn parameters of each image as text, for the preview page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.augment.base import Fact, MixingAugmentation
from pipelines.augment.decoded_crop import describe_window, draw_windows, is_cropped_while_decoding
from pipelines.augment.draw import DrawnValues, draw_values, image_shape
from pipelines.spec import AugmentSpec, DataSpec


def describe_draws(
    spec: AugmentSpec,
    seed: int,
    epoch: int,
    rows: ArrayLike,
    data: DataSpec,
    shares: NDArray[np.float32] | None,
    shapes: NDArray[np.int32] | None = None,
) -> list[list[Fact]]:
    """Describes what `draw` draws for a batch, in the order in which it is applied.

    Args:
        spec: Settings of all augmentations.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        rows: Rows of the split in the order of the batch, `[n]`.
        data: Size and channels of the images.
        shares: Share of each image itself in its mixture, `[n]`, as `apply_augmentations` returns it; None if
            no images are mixed.
        shapes: Height, width and channels of the stored images, int32 `[n, 3]`; needed only where images are
            cropped while they are decoded.

    Returns:
        For each image, a fact for every augmentation that is on and one for how the image is mixed.
    """
    drawn = draw_values(spec, seed, epoch, rows, image_shape(data))
    mixing = [d for d in drawn if isinstance(d.augmentation, MixingAugmentation)]
    single = [d for d in drawn if not isinstance(d.augmentation, MixingAugmentation)]
    single.sort(key=lambda d: not getattr(d.augmentation, "in_unit_square", False))  # crops are applied first
    windows = None
    if is_cropped_while_decoding(spec) and shapes is not None:
        windows = draw_windows(spec, seed, epoch, rows, shapes)
    descriptions = []
    for index in range(len(np.asarray(rows))):
        facts = [augmentation.describe(values, index) for augmentation, values, _ in single]
        if windows is not None and shapes is not None:
            facts.insert(0, describe_window(windows[index], shapes[index]))
        if shares is not None and mixing:
            facts.append(_choose_mixing(mixing, index).describe_share(float(shares[index])))
        descriptions.append([fact for fact in facts if fact is not None])
    return descriptions


def _choose_mixing(mixing: Sequence[DrawnValues], index: int) -> Any:
    """Returns the augmentation that mixes an image, or the first one if none does."""
    for augmentation, _, is_active in mixing:
        if is_active[index]:
            return augmentation
    return mixing[0].augmentation
