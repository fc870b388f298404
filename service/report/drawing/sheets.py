"""Sprite sheets: the channels of a feature map, or other small images, as tiles of one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.report.drawing.colours import (
    FRAME,
    FRAME_INDEX,
    INACTIVE,
    INACTIVE_INDEX,
    apply_viridis,
    quantize,
)
from service.report.rasters import MAX_TILE_SIDE, average_blocks, compute_shrink_factor, repeat_pixels

# Number of tiles per row of a sheet.
COLUMNS = 16
# Smallest longer side of a tile, in pixels.
MIN_TILE_SIDE = 24
# Alignment of tiles in pixels: the side of the blocks that a format encodes, within which values bleed. JPEG
# is used without chroma subsampling, with which they would be twice as large, and so would be the gutters.
BLOCK = 8
BLOCKS = {"png": 1, "png-16": 1, "webp": 16}
# Number of steps to which mean activations are quantized for the page's script.
ACTIVATION_STEPS = 1000
# Feature maps with fewer values are encoded losslessly.
LOSSLESS_VALUES = 1 << 17
# Widest gutter between the tiles of a JPEG, as a share of a tile.
WIDEST_GUTTER = 0.2
# Largest side of a WebP image, in pixels.
MAX_WEBP_SIDE = 16_383
# Side of the cell drawn for a unit of a vector, in pixels, and cells in a row.
CELL_SIDE = 16
CELL_COLUMNS = 64
# Tiles per row, and longest side of a tile in pixels, in comparisons of checkpoints.
COMPARISON_COLUMNS = 8
COMPARISON_TILE_SIDE = 48


@dataclass(frozen=True)
class SheetLayout:
    """Positions of the tiles of a sheet, in pixels. Tile i is in row `i // columns`, column `i % columns`.

    Attributes:
        columns: Tiles in a full row.
        count: Number of all tiles.
        tile: Width and height of a tile.
        pitch: Distance from one tile to the next, across and down: whole blocks, so that no tile bleeds into
            its neighbour.
        offset: Position of the first tile.
    """

    columns: int
    count: int
    tile: tuple[int, int]
    pitch: tuple[int, int]
    offset: tuple[int, int] = (0, 0)

    @property
    def rows(self) -> int:
        """Number of rows, the last one possibly incomplete."""
        return -(-self.count // self.columns)

    def build_page_data(
        self, mean_activation: NDArray[np.floating], is_inactive: NDArray[np.bool_], **extra: Any
    ) -> dict[str, Any]:
        """Builds the compact data from which the page's script finds and describes tiles.

        Args:
            mean_activation: Mean activation of every tile; quantized to a thousandth of the largest.
            is_inactive: Flags of inactive tiles; given to the page as a list of their indices.
            extra: Further entries for the page's script.
        """
        largest = float(np.abs(mean_activation).max(initial=0)) or 1.0
        steps = np.rint(mean_activation / largest * ACTIVATION_STEPS).astype(int).tolist()
        data = asdict(self)
        data["activity"] = steps
        data["step"] = largest / ACTIVATION_STEPS
        data["blank"] = np.flatnonzero(is_inactive).tolist()
        return data | extra


@dataclass(frozen=True)
class TileScaling:
    """Scaling and alignment of feature maps as tiles of a sheet.

    Attributes:
        shrink: Side of the blocks that are averaged, in pixels.
        grow: Number of times that pixels are repeated after that.
        block: Alignment of the tiles, in pixels.
        columns: Tiles in a full row.
    """

    shrink: int
    grow: int
    block: int = BLOCK
    columns: int = COLUMNS


def compute_scaling(
    height: int, width: int, smallest: int = MIN_TILE_SIDE, largest: int = MAX_TILE_SIDE
) -> TileScaling:
    """Computes whole factors that bring the longer side of a map between two sizes, as far as they can."""
    shrink = compute_shrink_factor(height, width, largest)
    side = -(-max(height, width) // shrink)
    return TileScaling(shrink, max(1, -(-smallest // side)))


def compute_layout(height: int, width: int, count: int, scaling: TileScaling) -> SheetLayout:
    """Computes the layout of `count` maps `[height, width]`, with at least a pixel of frame between tiles."""
    tile_width = -(-width // scaling.shrink) * scaling.grow
    tile_height = -(-height // scaling.shrink) * scaling.grow
    pitch_x = -(-(tile_width + 1) // scaling.block) * scaling.block
    pitch_y = -(-(tile_height + 1) // scaling.block) * scaling.block
    columns = min(scaling.columns, count)
    return SheetLayout(columns, count, (tile_width, tile_height), (pitch_x, pitch_y))


def find_block(kind: str) -> int:
    """Returns the alignment of tiles for a kind of picture, in pixels."""
    return BLOCKS.get(kind, BLOCK)


def choose_encoding(shape: Sequence[int], preference: str = "auto") -> str:
    """Chooses the file format of a layer's sheets.

    Args:
        shape: Shape of the feature maps, `(H, W, C)`.
        preference: `png`, `jpeg` or `webp`, or `auto`: PNG for maps that are enlarged or have few values, for
            which it is also the smaller file, or whose tiles would have wide gutters; JPEG for all others.

    Returns:
        `png`, `jpeg` or `webp`; PNG instead of WebP for sheets that are too high for WebP.
    """
    height, width, channels = shape
    scaling = compute_scaling(height, width)
    if preference == "auto":
        is_lossless = scaling.grow > 1 or np.prod(shape) < LOSSLESS_VALUES
        layout = compute_layout(height, width, channels, scaling)
        has_wide_gutters = layout.pitch[0] > (1 + WIDEST_GUTTER) * layout.tile[0]
        return "png" if is_lossless or has_wide_gutters else "jpeg"
    layout = compute_layout(height, width, channels, scaling)
    if preference == "webp" and layout.rows * layout.pitch[1] > MAX_WEBP_SIDE:
        return "png"
    return preference


def choose_scaling(shape: Sequence[int], preference: str = "auto") -> TileScaling:
    """Chooses the scaling of feature maps `(H, W, C)` for a preferred format; PNG needs no alignment."""
    scaling = compute_scaling(shape[0], shape[1])
    return replace(scaling, block=find_block(choose_encoding(shape, preference)))


def draw_channel_sheet(tiles: np.ndarray, is_inactive: np.ndarray, scaling: TileScaling) -> np.ndarray:
    """Lays out the channels of one image as tiles.

    Uses NumPy: it takes a tenth of the time that TensorFlow takes to reorder bytes.

    Args:
        tiles: uint8 `[h, w, C]`, palette indices of the channels at the size of tiles.
        is_inactive: bool `[C]`: flags of channels that are filled with the colour of inactive ones.
        scaling: Enlargement and alignment of the tiles; `shrink` has been applied to them before.

    Returns:
        uint8 `[rows * pitch, columns * pitch]`, palette indices.
    """
    channels = np.moveaxis(tiles, -1, 0)[..., None]  # [C, h, w, 1]
    sheet = draw_sheet(channels, replace(scaling, shrink=1), is_inactive, INACTIVE_INDEX, FRAME_INDEX)
    return sheet[..., 0]


def draw_sheet(
    tiles: np.ndarray, scaling: TileScaling, is_inactive: np.ndarray, fill: Any = INACTIVE, frame: Any = FRAME
) -> np.ndarray:
    """Lays out images as tiles, those that are inactive filled with one colour.

    Args:
        tiles: uint8 `[N, h, w, 1 or 3]`.
        scaling: Enlargement and alignment of the tiles; they are not shrunk.
        is_inactive: bool `[N]`: flags of the tiles that are filled.
        fill: Colour or palette index of inactive tiles.
        frame: Colour or palette index between tiles.

    Returns:
        uint8 `[rows * pitch, columns * pitch, depth]`, with the depth of `frame`.
    """
    count, height, width, _ = tiles.shape
    layout = compute_layout(height, width, count, scaling)
    tile_width, tile_height = layout.tile
    pitch_x, pitch_y = layout.pitch
    depth = np.size(frame)
    picture = np.empty((layout.rows, pitch_y, layout.columns, pitch_x, depth), np.uint8)
    picture[:] = frame
    for row in range(layout.rows):
        in_row = slice(row * layout.columns, (row + 1) * layout.columns)
        enlarged = tiles[in_row].repeat(scaling.grow, 1).repeat(scaling.grow, 2)  # [n, h, w, depth]
        target = picture[row, :tile_height, : len(enlarged), :tile_width]  # [h, n, w, depth]
        target[:] = enlarged.swapaxes(0, 1)
        target[:, is_inactive[in_row]] = fill
    return picture.reshape(layout.rows * pitch_y, layout.columns * pitch_x, depth)


def draw_comparison_sheets(levels: np.ndarray, is_inactive: np.ndarray) -> list[np.ndarray]:
    """Lays out the first channels of several images on small sheets with a frame of one pixel.

    Args:
        levels: float `[B, H, W, C]`, 0 to 255: standardized channels.
        is_inactive: bool `[B, C]`: flags of channels that are filled with the colour of inactive ones.

    Returns:
        One sheet per image, uint8 `[height, width]`, palette indices.
    """
    sheets = []
    for channels, flags in zip(levels.transpose(0, 3, 1, 2), is_inactive, strict=True):  # [C, H, W], [C]
        small = average_blocks(channels / 255, COMPARISON_TILE_SIDE)
        tiles = repeat_pixels(quantize(small), COMPARISON_TILE_SIDE)
        tiles[flags] = INACTIVE_INDEX
        columns = min(COMPARISON_COLUMNS, len(tiles))
        padding = ((0, -len(tiles) % columns), (0, 1), (0, 1))
        tiles = np.pad(tiles, padding, constant_values=FRAME_INDEX)
        count, height, width = tiles.shape
        rows = count // columns
        sheet = tiles.reshape(rows, columns, height, width).swapaxes(1, 2)  # [rows, height, columns, width]
        sheets.append(sheet.reshape(rows * height, columns * width))
    return sheets


def draw_vector(levels: np.ndarray) -> np.ndarray:
    """Draws the units of a dense layer as coloured cells, 64 in a row.

    Args:
        levels: uint8 `[units]`, 0 to 255: standardized values.

    Returns:
        uint8 `[height, width, 3]`.
    """
    cells = apply_viridis(levels.reshape(-1, 1, 1))  # [units, 1, 1, 3]
    return tile_images(repeat_pixels(cells, CELL_SIDE), CELL_COLUMNS)


def tile_images(tiles: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """Lays images out in rows, from left to right and from top to bottom, on a dark frame.

    Args:
        tiles: uint8 `[N, H, W, 3]`, N >= 1.
        columns: Tiles in a full row.
        gap: Width of the frame around and between tiles, in pixels.

    Returns:
        uint8 `[rows * (H + gap) + gap, columns * (W + gap) + gap, 3]`, with fewer columns if N is less.
    """
    count, height, width, _ = tiles.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.empty((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), np.uint8)
    sheet[:] = FRAME
    for index, tile in enumerate(tiles):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return sheet
