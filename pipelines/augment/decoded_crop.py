"""Random resized crop of the stored image: the part that is drawn is all that a decoder has to decode."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.augment.base import Fact
from pipelines.augment.boxes import scale_linear, scale_log
from pipelines.augment.philox import Floats, fold_in, uniform
from pipelines.errors import ConfigError
from pipelines.spec import AugmentSpec, DataSpec

Windows = NDArray[np.int32]
Integers = NDArray[np.int64]

KEY = "window"  # name of the windows in a batch
STREAM = "decoded crop"  # of random numbers
ATTEMPTS = 10
# Of the numbers of an image, the first two place the window; each attempt has two more.
POSITION: Mapping[str, int] = {"y": 0, "x": 1}
ATTEMPT: Mapping[str, int] = {"area": 2, "ratio": 3}
NUMBERS_PER_ATTEMPT = len(ATTEMPT)
NUMBERS = len(POSITION) + ATTEMPTS * NUMBERS_PER_ATTEMPT


def is_cropped_while_decoding(spec: AugmentSpec | None) -> bool:
    """Tells whether every epoch decodes another part of an image."""
    return spec is not None and spec.crop is not None and bool(spec.crop_at == "decode")


def check_crop_cache(spec: AugmentSpec | None, data: DataSpec) -> None:
    """Checks that no decoded images are to be cached, where every epoch decodes other parts of them.

    Raises:
        ConfigError: A cache is requested.
    """
    if is_cropped_while_decoding(spec) and data.cache in ("host", "device"):
        raise ConfigError(
            "data.cache=none or auto where images are cropped while they are decoded",
            f"augment.crop_at=decode with data.cache={data.cache}",
            "use data.cache=none, or augment.crop_at=device",
        )


def draw_windows(
    spec: AugmentSpec, seed: int, epoch: int, rows: ArrayLike, shapes: NDArray[np.int32]
) -> Windows:
    """Draws the part of each stored image that is decoded, in whole pixels.

    The distribution is that of `RandomResizedCrop` in torchvision, with which ImageNet's published recipes
    train (after Szegedy et al., "Going deeper with convolutions", 2015): up to ten attempts draw an area
    uniformly and a width over height uniformly in the logarithm, and round both sides. The first attempt that
    fits into the image decides, and is placed uniformly. If none fits, the window is the largest one in the
    middle whose proportions are allowed.

    Args:
        spec: Ranges of area and proportions.
        seed: Any integer from 0 to 2**64 - 1.
        epoch: Number of the epoch, from 0.
        rows: Rows of the split, `[n]`; -1 marks padding.
        shapes: Height, width and channels of the stored images, int32 `[n, 3]`; zeros for padding, whose
            window is one pixel.

    Returns:
        int32 `[n, 4]`: top, left, height and width in pixels.
    """
    numbers = uniform(fold_in(seed, STREAM), epoch, rows, NUMBERS)  # [NUMBERS, n]
    sides = np.maximum(shapes[:, :2].astype(np.int64), 1)  # [n, 2]
    sizes = _draw_sizes(spec, numbers, sides)
    is_found = sizes[:, 0] > 0
    room = sides - sizes
    position = np.stack([numbers[POSITION["y"]], numbers[POSITION["x"]]], axis=1)  # [n, 2]
    placed = np.floor(position * (room + 1)).astype(np.int64)

    fallback = _find_largest(sides, *spec.crop_ratio)
    sizes = np.where(is_found[:, None], sizes, fallback)
    starts = np.where(is_found[:, None], placed, (sides - fallback) // 2)
    return np.concatenate([starts, sizes], axis=1).astype(np.int32)


def _draw_sizes(spec: AugmentSpec, numbers: Floats, sides: Integers) -> Integers:
    """Draws height and width of each window, int64 `[n, 2]`; zeros where no attempt fits."""
    smallest, largest = spec.crop
    narrowest, widest = spec.crop_ratio
    sizes = np.zeros_like(sides)
    pending = np.arange(len(sides))
    for attempt in range(ATTEMPTS):
        first = attempt * NUMBERS_PER_ATTEMPT
        share = scale_linear(smallest, largest, numbers[first + ATTEMPT["area"], pending])
        ratio = scale_log(narrowest, widest, numbers[first + ATTEMPT["ratio"], pending])
        area = share * sides[pending].prod(axis=1)
        drawn = np.rint(np.sqrt(np.stack([area / ratio, area * ratio], axis=1))).astype(np.int64)
        fits = ((drawn > 0) & (drawn <= sides[pending])).all(axis=1)
        sizes[pending[fits]] = drawn[fits]
        pending = pending[~fits]
        if not len(pending):
            break
    return sizes


def _find_largest(sides: Integers, narrowest: float, widest: float) -> Integers:
    """Returns height and width of the largest window with allowed proportions, int64 `[n, 2]`."""
    height, width = sides.T
    limited_height = np.where(width < narrowest * height, np.rint(width / narrowest), height)
    limited_width = np.where(width > widest * height, np.rint(height * widest), width)
    largest = np.stack([limited_height, limited_width], axis=1).astype(np.int64)
    return np.asarray(np.clip(largest, 1, sides), np.int64)


def describe_window(window: Windows, shape: NDArray[np.int32]) -> Fact:
    """Describes the part of one image that is decoded.

    Args:
        window: int32 `[4]`: top, left, height and width in pixels.
        shape: int32 `[3]`: height, width and channels of the stored image.
    """
    top, left, height, width = (int(side) for side in window)
    share = height * width / max(int(shape[0]) * int(shape[1]), 1)  # padding has no size
    return Fact("crop", f"{share:.0%}: {width}\N{MULTIPLICATION SIGN}{height} pixels at x {left} y {top}")
