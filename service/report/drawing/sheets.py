"""Sheets: the channels of a feature map as tiles of one picture, 16 a row; their shades are made for a whole batch inside the graph."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from service.report.drawing.colours import FLAT, FLAT_PLACE, FRAME, FRAME_PLACE, SHADES

COLUMNS = 16  # tiles a row
BLOCK = (
    16  # pixels: JPEG codes squares of 8 in brightness and 16 in colour, and what lies in one runs together
)
SMALLEST, LARGEST = 24, 64  # pixels of a tile's longer side
STEPS = 1000  # in which a page is told of activity


@dataclass(frozen=True)
class Grid:
    """Where the tiles of a sheet lie, in pixels. Tile i is in row `i // columns`, column `i % columns`.

    Attributes:
        columns: Tiles in a full row.
        count: Tiles in all.
        tile: Width and height of a tile.
        pitch: From one tile to the next, across and down: whole blocks, so that no tile runs into its neighbour.
        offset: Of the first tile.
    """

    columns: int
    count: int
    tile: tuple[int, int]
    pitch: tuple[int, int]
    offset: tuple[int, int] = (0, 0)

    def for_page(
        self, activity: NDArray[np.floating], blank: NDArray[np.bool_], **more: Any
    ) -> dict[str, Any]:
        """What the page's script needs to find tiles and to say what they are, in few bytes.

        Args:
            activity: Of every tile; the page gets it in steps of a thousandth of the largest.
            blank: Which tiles are; the page gets their places.
            more: Anything else.
        """
        most = float(np.abs(activity).max(initial=0)) or 1.0
        steps = np.rint(activity / most * STEPS).astype(int).tolist()
        return (
            asdict(self)
            | {"activity": steps, "step": most / STEPS, "blank": np.flatnonzero(blank).tolist()}
            | more
        )


@dataclass(frozen=True)
class Scaling:
    """How maps become tiles.

    Attributes:
        shrink: Squares of so many pixels are averaged,
        grow: then pixels are repeated so many times.
        block: Tiles begin at multiples of so many pixels.
        columns: Tiles a row.
    """

    shrink: int
    grow: int
    block: int = BLOCK
    columns: int = COLUMNS


def scaling(height: int, width: int, smallest: int = SMALLEST, largest: int = LARGEST) -> Scaling:
    """The whole factors that bring the longer side of a map between two sizes, as far as whole factors can."""
    shrink = max(1, -(-max(height, width) // largest))
    side = -(-max(height, width) // shrink)
    return Scaling(shrink, max(1, -(-smallest // side)))


def grid(height: int, width: int, count: int, scaled: Scaling) -> Grid:
    """The grid of `count` maps of a size, each with at least a pixel of frame to its right and below."""
    tile = tuple(-(-side // scaled.shrink) * scaled.grow for side in (width, height))
    pitch = tuple(-(-(side + 1) // scaled.block) * scaled.block for side in tile)
    return Grid(min(scaled.columns, count), count, (tile[0], tile[1]), (pitch[0], pitch[1]))


def levels(values: Any, mean: Any = None, deviation: Any = None) -> tf.Tensor:
    """Brings every channel to mean 128 and standard deviation 64, clipped to 0..255 (F. Chollet, 2017).

    Args:
        values: float `[B, H, W, C]`.
        mean: `[C]` or wider, where several moments of a network share a scale; None takes each image's own.
        deviation: The same.

    Returns:
        float32 `[B, H, W, C]`; 128 where a channel does not deviate.
    """
    if mean is None or deviation is None:
        mean, variance = tf.nn.moments(values, axes=(1, 2), keepdims=True)
        deviation = tf.sqrt(variance)
    scale = tf.math.divide_no_nan(64.0, deviation)
    # Few passes over the values, which are many: `tf.clip_by_value` would take two for its part.
    return tf.raw_ops.ClipByValue(
        t=values * scale + (128.0 - mean * scale), clip_value_min=0.0, clip_value_max=255.0
    )


def blank(values: Any) -> tf.Tensor:
    """Which channels carry no signal: never above zero, or the same everywhere. `[B, H, W, C]` to bool `[B, C]`."""
    highest, lowest = tf.reduce_max(values, axis=(1, 2)), tf.reduce_min(values, axis=(1, 2))
    return ~((highest > 0) & (highest > lowest))


def shades(shown: Any, shrink: int) -> tf.Tensor:
    """Channels as places in a palette, in the graph, at the size in which tiles show them.

    Args:
        shown: float32 `[B, H, W, C]`, 0 to 255.
        shrink: Squares of so many pixels are averaged.

    Returns:
        uint8 `[B, H / shrink, W / shrink, C]`, the sides rounded up.
    """
    if shrink > 1:
        shown = _averaged(shown, shrink)
    return tf.cast(tf.round(shown * ((SHADES - 1) / 255)), tf.uint8)


def sheet(places: np.ndarray, is_blank: np.ndarray, scaled: Scaling) -> np.ndarray:
    """Lays out the channels of one image as tiles; with NumPy, which takes a tenth of what TensorFlow takes to reorder bytes.

    Args:
        places: From `shades`, uint8 `[h, w, C]`.
        is_blank: bool `[C]`: these become flat.
        scaled: How much larger; smaller they are already.

    Returns:
        uint8 `[rows * pitch, columns * pitch]`: places in a palette.
    """
    return mosaic(
        np.moveaxis(places, -1, 0)[..., None], replace(scaled, shrink=1), is_blank, FLAT_PLACE, FRAME_PLACE
    )[..., 0]


def mosaic(
    tiles: np.ndarray, scaled: Scaling, is_blank: np.ndarray, flat: Any = FLAT, frame: Any = FRAME
) -> np.ndarray:
    """Lays out images as tiles, those that are blank flat.

    Args:
        tiles: uint8 `[N, h, w, 1 or 3]`.
        scaled: How much larger; they are not made smaller.
        is_blank: bool `[N]`.
        flat: What blank tiles are filled with.
        frame: What lies between tiles.

    Returns:
        uint8 `[rows * pitch, columns * pitch, depth]`, as deep as `frame`.
    """
    count, height, width, _ = tiles.shape
    lies = grid(height, width, count, scaled)
    (tile_w, tile_h), (pitch_w, pitch_h), rows = lies.tile, lies.pitch, -(-count // lies.columns)
    picture = np.empty((rows, pitch_h, lies.columns, pitch_w, np.size(frame)), np.uint8)
    picture[:] = frame
    for row in range(rows):
        own = slice(row * lies.columns, (row + 1) * lies.columns)
        part = picture[row, :tile_h, : len(is_blank[own]), :tile_w]  # [h, columns, w, depth]
        part[:] = tiles[own].repeat(scaled.grow, 1).repeat(scaled.grow, 2).swapaxes(0, 1)
        part[:, is_blank[own]] = flat
    return picture.reshape(rows * pitch_h, lies.columns * pitch_w, -1)


def _averaged(values: tf.Tensor, factor: int) -> tf.Tensor:
    """Averages blocks `[factor, factor]` of `[B, H, W, C]`; what is missing in the last ones repeats the edge."""
    for axis in (1, 2):
        size = [factor if axis == n else 1 for n in (1, 2)]
        whole, rest = tf.nn.avg_pool2d(values, size, size, "VALID"), values.shape[axis] % factor
        if rest:
            last = tf.gather(values, range(values.shape[axis] - rest, values.shape[axis]), axis=axis)
            edge = tf.gather(last, [rest - 1], axis=axis)
            last = (tf.reduce_sum(last, axis, keepdims=True) + (factor - rest) * edge) / factor
            whole = tf.concat([whole, last], axis)
        values = whole
    return values
