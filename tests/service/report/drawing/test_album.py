"""Pictures: exact pixels of tiles and palettes, and files named by their content."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from service.report.drawing.album import Album
from service.report.drawing.colours import FRAME, INACTIVE, VIRIDIS, apply_viridis
from service.report.drawing.sheets import tile_images


def test_viridis_runs_from_dark_violet_through_teal_to_yellow():
    assert VIRIDIS.shape == (256, 3)
    assert VIRIDIS[0].tolist() == [68, 1, 84]
    assert VIRIDIS[255].tolist() == [253, 231, 37]
    assert np.abs(VIRIDIS[128].astype(int) - [33, 145, 140]).max() <= 1
    lightness = VIRIDIS @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > -1.0).all()
    assert lightness[255] - lightness[0] > 190


@pytest.mark.parametrize("colour", [INACTIVE, FRAME])
def test_special_colours_are_not_in_the_colour_map(colour):
    assert np.abs(VIRIDIS.astype(int) - colour).sum(axis=1).min() > 30


def test_viridis_is_looked_up_by_level():
    np.testing.assert_array_equal(
        apply_viridis(np.array([[0, 255]], np.uint8)), [[[68, 1, 84], [253, 231, 37]]]
    )


def test_tiles_are_laid_out_right_then_down_with_their_pixels_unchanged():
    tiles = np.arange(3 * 1 * 2 * 3, dtype=np.uint8).reshape(3, 1, 2, 3)
    sheet = tile_images(tiles, columns=2, gap=1)
    assert sheet.shape == (5, 7, 3)
    expected = np.full((5, 7, 3), FRAME, np.uint8)
    expected[1, 1:3] = tiles[0, 0]
    expected[1, 4:6] = tiles[1, 0]
    expected[3, 1:3] = tiles[2, 0]
    np.testing.assert_array_equal(sheet, expected)


def test_few_tiles_make_a_narrow_sheet():
    assert tile_images(np.zeros((2, 4, 4, 3), np.uint8), columns=16, gap=1).shape == (6, 11, 3)


@pytest.mark.parametrize(
    ("side", "shape", "suffix"), [(64, (128, 128), ".png"), (65, (65, 65), ".webp"), (28, (112, 112), ".png")]
)
def test_large_images_are_stored_as_webp_and_small_ones_as_enlarged_png(tmp_path, side, shape, suffix):
    picture = Album(tmp_path).add_photo(np.full((side, side, 3), 90, np.uint8), "x", "an image")
    assert picture.file.endswith(suffix)
    assert (picture.height, picture.width) == shape
    assert Image.open(tmp_path / picture.file).size == (picture.width, picture.height)


def test_an_album_names_files_by_content_and_records_all_their_origins(tmp_path):
    album = Album(tmp_path)
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    first = album.add_sheet(pixels, "sheet", "first", row=1)
    again = album.add_sheet(pixels, "sheet", "again", row=2)
    other = album.add_sheet(255 - pixels, "sheet", "other", row=3)
    assert first.file == again.file != other.file
    assert (first.width, first.height, first.alt, again.alt) == (3, 2, "first", "again")
    digest = hashlib.sha256((tmp_path / first.file).read_bytes()).hexdigest()
    assert first.file == f"pictures/sheet-{digest[:12]}.png"
    assert album.entries[first.file] == {
        "file": first.file,
        "sha256": digest,
        "made_from": [{"row": 1}, {"row": 2}],
    }
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / first.file)), pixels)


def test_the_name_of_a_file_is_short_whatever_the_layer_is_called(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    picture = Album(tmp_path).add_sheet(pixels, "y" * 10_000, "")
    assert (tmp_path / picture.file).is_file()
    assert picture.file.startswith("pictures/yyy")


def test_a_greyscale_image_keeps_its_values(tmp_path):
    pixels = np.array([[[0], [200]], [[50], [255]]], np.uint8)
    picture = Album(tmp_path).add_photo(pixels, "x", "an image")
    stored = np.asarray(Image.open(tmp_path / picture.file))
    assert stored.shape == (112, 112)
    assert stored[[0, 0, 111, 111], [0, 111, 0, 111]].tolist() == [0, 200, 50, 255]
