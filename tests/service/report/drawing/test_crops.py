"""Pictures of crops and kernels: every crop in its square, marks where they belong, grey for zero."""

from __future__ import annotations

import numpy as np

from service.report.drawing.colours import FRAME
from service.report.drawing.crops import CROP_SIDE, GAP, compose_kernels, draw_crop, draw_crops

PITCH = CROP_SIDE + GAP


def test_crops_are_in_order_and_missing_ones_empty():
    crops = [np.full((7, 7, 1), 20 * number, np.uint8) for number in range(1, 6)]
    picture = draw_crops(crops, [None] * 5)
    assert picture.shape == (3 * PITCH + GAP, 3 * PITCH + GAP, 3)
    for number in range(9):
        top = GAP + number // 3 * PITCH
        left = GAP + number % 3 * PITCH
        tile = picture[top : top + CROP_SIDE, left : left + CROP_SIDE]
        expected = 20 * (number + 1) if number < 5 else FRAME
        assert (tile == expected).all()


def test_pixels_of_small_crops_stay_whole_and_shapes_are_kept():
    crop = np.zeros((2, 4, 3), np.uint8)
    crop[0, 3] = [255, 0, 0]
    tile = draw_crop(crop, None)
    cell = CROP_SIDE // 4
    assert (tile[cell : 2 * cell, 3 * cell :] == [255, 0, 0]).all()
    assert (tile[2 * cell : 3 * cell, 3 * cell :] == 0).all()
    assert (tile[:cell] == FRAME).all()


def test_a_mark_frames_its_place():
    tile = draw_crop(np.full((112, 112, 1), 90, np.uint8), (0.75, 0.25))
    rows, columns = np.nonzero((tile == 255).all(axis=-1))
    assert abs((rows.min() + rows.max()) / 2 - 0.75 * CROP_SIDE) <= 1
    assert abs((columns.min() + columns.max()) / 2 - 0.25 * CROP_SIDE) <= 1
    assert (tile[42, 14] == 90).all()
    corner = draw_crop(np.full((112, 112, 1), 90, np.uint8), (0.0, 1.0))
    assert (corner == 255).any()


def test_kernels_are_images_with_grey_for_zero():
    kernel = np.zeros((1, 2, 3, 2))
    kernel[0, 0, :, 1] = [0.5, -0.5, 0.25]
    images = compose_kernels(kernel, 0.5)
    assert images.shape == (2, 1, 2, 3)
    assert (images[0] == 128).all()
    assert images[1, 0].tolist() == [[255, 1, 192], [128, 128, 128]]
