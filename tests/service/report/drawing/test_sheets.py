"""Sprite sheets: positions of tiles, their sizes and formats, and pixels that do not bleed in a JPEG."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from service.report.drawing.album import Drawing, encode
from service.report.drawing.colours import FRAME, FRAME_INDEX, INACTIVE, SEQUENTIAL, VIRIDIS
from service.report.drawing.sheets import (
    BLOCK,
    TileScaling,
    choose_encoding,
    choose_scaling,
    compute_layout,
    compute_scaling,
    draw_channel_sheet,
    draw_sheet,
    draw_vector,
)


def draw_active(tiles: np.ndarray, scaling: TileScaling) -> np.ndarray:
    """Draws a sheet of channels `[h, w, C]`, all of them active."""
    return draw_channel_sheet(tiles, np.zeros(tiles.shape[2], bool), scaling)


def test_channels_are_laid_out_sixteen_in_a_row_in_their_order():
    tiles = np.zeros((40, 36, 18), np.uint8)
    for channel in range(18):
        tiles[channel, 2 * channel, channel] = 253  # the position of the bright pixel identifies the channel
    sheet = draw_active(tiles, TileScaling(1, 1))
    layout = compute_layout(40, 36, 18, TileScaling(1, 1))
    assert (layout.columns, layout.count, layout.rows) == (16, 18, 2)
    assert (layout.tile, layout.pitch, layout.offset) == ((36, 40), (40, 48), (0, 0))
    assert sheet.shape == (2 * 48, 16 * 40)
    for channel in range(18):
        top = channel // 16 * 48
        left = channel % 16 * 40
        bright = np.argwhere(sheet[top : top + 40, left : left + 36] == 253)
        assert bright.tolist() == [[channel, 2 * channel]]
        assert (sheet[top + 40 : top + 48, left : left + 40] == FRAME_INDEX).all()
    assert (sheet[48:, 2 * 40 :] == FRAME_INDEX).all()


@pytest.mark.parametrize(
    ("height", "width", "shrink", "grow"),
    [
        (7, 7, 1, 4),
        (2, 3, 1, 8),
        (24, 20, 1, 1),
        (64, 9, 1, 1),
        (65, 9, 2, 1),
        (224, 100, 4, 1),
        (1, 1, 1, 24),
    ],
)
def test_tiles_have_between_24_and_64_pixels_by_whole_factors(height, width, shrink, grow):
    scaling = compute_scaling(height, width)
    assert (scaling.shrink, scaling.grow) == (shrink, grow)


def decode(indices: np.ndarray, kind: str) -> np.ndarray:
    """Encodes palette indices as a picture file and decodes it again, int `[H, W, 3]`."""
    file = encode(Drawing(indices, "sheet", "", {}, kind, SEQUENTIAL))
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).astype(int)


def test_tiles_do_not_bleed_into_their_neighbours_in_a_jpeg():
    # A pitch of 24 pixels: three blocks of 8, but not a whole number of 16, as chroma subsampling takes.
    generator = np.random.default_rng(0)
    loud = generator.integers(0, 254, (22, 22)).astype(np.uint8)
    calm = np.full((22, 22), 127, np.uint8)
    scaling = TileScaling(1, 1, BLOCK)
    between_loud = decode(draw_active(np.stack([loud, calm, loud, calm], axis=-1), scaling), "jpeg")
    between_calm = decode(draw_active(np.stack([calm, calm, calm, calm], axis=-1), scaling), "jpeg")
    assert np.abs(between_loud[:22, :22] - between_calm[:22, :22]).max() > 40
    left = compute_layout(22, 22, 4, scaling).pitch[0]
    difference = np.abs(between_loud[:22, left : left + 22] - between_calm[:22, left : left + 22])
    assert not difference[:, 1:-1].any()
    # Decoders mix the colours of the outermost pixels with that of the frame.
    assert difference.max() <= 16


def test_a_vector_is_drawn_as_cells_in_the_order_of_its_units():
    levels = np.array([64, 192, 64, 192], np.uint8)
    strip = draw_vector(levels)
    assert strip.shape == (18, 4 * 17 + 1, 3)
    for unit, level in enumerate(levels):
        left = 1 + 17 * unit
        assert (strip[1:17, left : left + 16] == VIRIDIS[level]).all()
    assert draw_vector(np.zeros(65, np.uint8)).shape == (2 * 17 + 1, 64 * 17 + 1, 3)


def test_images_are_enlarged_and_inactive_ones_filled():
    tiles = np.zeros((3, 2, 1, 3), np.uint8)
    tiles[0, 1, 0] = (1, 2, 3)
    tiles[2] = 9
    sheet = draw_sheet(tiles, TileScaling(1, 4, 16), np.array([False, True, False]))
    assert sheet.shape == (16, 48, 3)
    assert (sheet[:4, :4] == 0).all()
    assert (sheet[4:8, :4] == (1, 2, 3)).all()
    assert (sheet[:8, 16:20] == INACTIVE).all()
    assert (sheet[:8, 32:36] == 9).all()
    assert (sheet[8:] == FRAME).all()


def test_gutters_are_narrow():
    """At most a fifth of the width of a JPEG sheet is frame, whatever the size of the maps."""
    for side in range(33, 257):
        shape = (side, side, 512)
        layout = compute_layout(*shape, choose_scaling(shape, "jpeg"))
        assert layout.tile[0] >= 0.8 * layout.pitch[0], side


@pytest.mark.parametrize(
    ("shape", "preference", "kind"),
    [
        ((7, 7, 512), "auto", "png"),
        ((64, 64, 64), "auto", "jpeg"),
        ((32, 32, 32), "auto", "png"),
        ((32, 32, 256), "auto", "png"),  # gutters of 8 pixels, a quarter of a tile
        ((36, 36, 256), "auto", "jpeg"),  # of 4, a ninth
        ((64, 64, 64), "webp", "webp"),
        ((64, 64, 8192), "webp", "png"),
        ((7, 7, 5), "jpeg", "jpeg"),
        ((64, 64, 64), "png", "png"),
    ],
)
def test_the_format_depends_on_size_and_preference(shape, preference, kind):
    assert choose_encoding(shape, preference) == kind


@pytest.mark.parametrize(("kind", "tolerance"), [("png", 0), ("jpeg", 12), ("webp", 12)])
def test_pictures_have_the_colours_of_the_palette(kind, tolerance):
    indices = np.kron(np.array([[0, 100], [253, 255]], np.uint8), np.ones((16, 16), np.uint8))
    difference = np.abs(decode(indices, kind) - SEQUENTIAL[indices]).reshape(2, 16, 2, 16, 3)
    assert difference[:, 4:-4, :, 4:-4].max() <= tolerance
