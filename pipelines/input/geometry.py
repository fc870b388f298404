"""Where an image of another shape goes: the part of it that is used, and its place in the result.

Both decoders follow these plans. All numbers are whole pixels, so that a decoder can cut the part out while
it decodes, and both decoders cut the same part.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.spec import DataSpec

Boxes = NDArray[np.int32]


class Placements(NamedTuple):
    """How n images become results of one size.

    Attributes:
        window: Part of each stored image that is used, int32 `[n, 4]`: top, left, height, width in pixels.
        target: Part of the result that it is resized to, int32 `[n, 4]`; the rest of the result is black.
    """

    window: Boxes
    target: Boxes


def place_images(shapes: NDArray[np.int32], data: DataSpec) -> Placements:
    """Plans how stored images become images of the requested size.

    `stretch` resizes all of an image, whatever its proportions. `crop` keeps the proportions and cuts off
    what protrudes on both sides: with `resize` R, the central H x W pixels of the image whose shorter side
    has been resized to R; otherwise the largest central part of the proportions H : W. `pad` keeps the
    proportions and shows all of the image, centred on black.

    Args:
        shapes: Height, width and channels of the stored images, int32 `[n, 3]`.
        data: Size of the result, and the way to fit an image into it.
    """
    size = np.array(data.image_size, np.int64)
    sides = np.maximum(shapes[:, :2].astype(np.int64), 1)  # [n, 2]; padding of a batch has no size
    window = sides
    target = np.broadcast_to(size, sides.shape)
    if data.fit == "crop":
        window = _cut_window(sides, size, data.resize)
    elif data.fit == "pad":
        target = _shrink_target(sides, size)
    return Placements(_center(window, sides), _center(target, size))


def place_record(record: dict[str, Any], data: DataSpec) -> Placements:
    """Plans how the images of a record become images of the requested size; padding is a single pixel.

    Args:
        record: Stored images, with `shape` int32 `[n, 3]`, zeros for padding, and where images are cropped at
            random also `window` int32 `[n, 4]`, see `use_windows`.
        data: Size of the result, and the way to fit an image into it.
    """
    placements = place_images(np.maximum(record["shape"], 1), data)
    if "window" in record:
        return placements._replace(window=record["window"])
    return placements


def use_windows(data: DataSpec, size: tuple[int, int] | None = None) -> DataSpec:
    """Returns the settings to decode given windows of images, each of which becomes the whole result.

    Args:
        data: Settings of the run, whose `fit` is that of images that are not cropped at random.
        size: Height and width of the results, which `augment.size` would resize them to; None for
            `data.image_size`.
    """
    return data.model_copy(update={"fit": "crop", "resize": None, "image_size": size or data.image_size})


def _cut_window(sides: NDArray[np.int64], size: NDArray[np.int64], resize: int | None) -> NDArray[np.int64]:
    """Returns height and width of the central part that becomes the result, int64 `[n, 2]`."""
    if resize is None:
        scale = (sides / size).min(axis=1, keepdims=True)  # stored pixels for one pixel of the result
    else:
        scale = sides.min(axis=1, keepdims=True) / resize
    window = np.rint(size * scale).astype(np.int64)
    return np.asarray(np.clip(window, 1, sides), np.int64)


def _shrink_target(sides: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns height and width of the largest part of the result with the proportions of the image."""
    scale = (size / sides).min(axis=1, keepdims=True)
    target = np.rint(sides * scale).astype(np.int64)
    return np.asarray(np.clip(target, 1, size), np.int64)


def _center(inner: NDArray[np.int64], outer: NDArray[np.int64]) -> Boxes:
    """Returns boxes of the sizes `inner` in the middle of `outer`, int32 `[n, 4]`."""
    start = (np.broadcast_to(outer, inner.shape) - inner) // 2
    return np.concatenate([start, inner], axis=1).astype(np.int32)


def map_box(
    box: tuple[float, float, float, float], shape: NDArray[np.int32], data: DataSpec
) -> tuple[float, float, float, float] | None:
    """Maps a box in a stored image to the image that `place_images` makes of it.

    Args:
        box: `(ymin, xmin, ymax, xmax)` as fractions of the stored image.
        shape: Height, width and channels of the stored image, int32 `[3]`.
        data: Size of the result, and the way to fit an image into it.

    Returns:
        The box as fractions of the result, limited to it; None if nothing of it is left.
    """
    placements = place_images(shape[None], data)
    window = placements.window[0]
    target = placements.target[0]
    edges = []
    for edge, axis in zip(box, (0, 1, 0, 1), strict=True):
        pixel = (edge * int(shape[axis]) - window[axis]) / window[2 + axis]  # fraction of the window
        pixel = min(max(pixel, 0.0), 1.0)
        edges.append((target[axis] + pixel * target[2 + axis]) / data.image_size[axis])
    top, left, bottom, right = (float(edge) for edge in edges)
    if bottom <= top or right <= left:
        return None
    return top, left, bottom, right
