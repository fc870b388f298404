"""Rasters: enlarging, shrinking and resizing of small maps, pixel by pixel."""

from __future__ import annotations

import numpy as np

from service.report.rasters import average_blocks, repeat_pixels, resize_bilinear


def test_repeating_enlarges_by_a_whole_factor():
    tiles = np.array([[[1, 2], [3, 4], [5, 6]]])
    np.testing.assert_array_equal(
        repeat_pixels(tiles, 4)[0],
        [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4], [5, 5, 6, 6], [5, 5, 6, 6]],
    )
    assert repeat_pixels(tiles, 3) is tiles


def test_averaging_shrinks_by_a_whole_factor_and_repeats_the_edge():
    tiles = np.array([[[0.0, 2.0, 4.0], [4.0, 6.0, 8.0], [1.0, 1.0, 1.0]]])
    np.testing.assert_array_equal(average_blocks(tiles, 2)[0], [[3.0, 6.0], [1.0, 1.0]])
    assert average_blocks(tiles, 3) is tiles


def test_resizing_is_linear_between_the_centres_of_cells():
    resized = resize_bilinear(np.array([[0.0, 4.0]], np.float32), 2, 4)
    np.testing.assert_array_equal(resized, [[0.0, 1.0, 3.0, 4.0]] * 2)
