"""Sprite sheets: the thumbnail at position i is image i, at its place in the layout."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from service.report.drawing.album import Drawing, encode
from service.report.drawing.sprites import COLUMNS, SHEET_IMAGES, choose_sprites


def draw_sheet(images: np.ndarray) -> tuple[Drawing, np.ndarray, list[tuple[int, int, int, int]]]:
    """Returns the drawing of a sheet, the pixels of its file, and the places of its thumbnails."""
    sprites = choose_sprites(images.shape[1:], len(images))
    drawing = sprites.draw(images, "thumbnails", {})
    with Image.open(io.BytesIO(encode(drawing))) as file:
        pixels = np.asarray(file.convert("RGB"))
    layout = sprites.compute_layout()
    places = []
    for i in range(len(images)):
        left = i % layout.columns * layout.pitch[0]
        top = i // layout.columns * layout.pitch[1]
        places.append((top, left, layout.tile[1], layout.tile[0]))
    return drawing, pixels, places


@pytest.mark.parametrize("count", [1, 19, 20, 21, 47])
def test_small_grey_images_keep_their_pixels_in_16_shades(count: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, 5, 9, 1), np.uint8)
    drawing, pixels, places = draw_sheet(images)
    assert pixels.shape[:2] == drawing.pixels.shape[:2]
    for image, (top, left, height, width) in zip(images, places, strict=True):
        tile = pixels[top : top + height, left : left + width]
        np.testing.assert_array_equal(tile, np.rint(image / 17).astype(np.uint8).repeat(3, 2) * 17)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (150, 100), (64, 64), (65, 40)])
def test_thumbnails_of_colour_images_are_at_their_place(height: int, width: int) -> None:
    """Each image has two colours, above and below its middle, which no other image has."""
    count = 45
    colours = np.random.default_rng(1).integers(0, 256, (count, 2, 1, 3))
    halves = colours.repeat([height // 2, height - height // 2], axis=1)
    images = halves.repeat(width, axis=2).astype(np.uint8)
    _, pixels, places = draw_sheet(images)
    for (above, below), (top, left, h, w) in zip(colours[:, :, 0], places, strict=True):
        tile = pixels[top : top + h, left : left + w].astype(float)
        middle = slice(w // 4, -(w // 4))
        assert np.abs(tile[h // 8 : 3 * h // 8, middle] - above).mean() < 12
        assert np.abs(tile[5 * h // 8 : 7 * h // 8, middle] - below).mean() < 12


def test_thumbnails_keep_the_proportions_and_shrink_when_there_are_many() -> None:
    assert choose_sprites((150, 100, 3), 1000).size == (95, 63)
    assert choose_sprites((150, 100, 3), 10_000).size == (63, 42)
    assert choose_sprites((28, 28, 1), 10_000).size == (28, 28)
    assert choose_sprites((224, 1, 3), 10).size == (95, 1)
    assert choose_sprites((28, 28, 1), 10_000).max_images >= 10_000
    assert choose_sprites((150, 150, 3), 1000).max_images >= 1000


def test_full_sheets_have_rows_of_equal_length() -> None:
    layout = choose_sprites((28, 28, 1), 10_000).compute_layout()
    assert (layout.columns, layout.count, layout.rows) == (COLUMNS, SHEET_IMAGES, SHEET_IMAGES // COLUMNS)
