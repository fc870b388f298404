"""Fitting images of any shape: which part is used, and where it goes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ConfigError
from pipelines.input.geometry import map_box, place_images
from pipelines.settings import check
from pipelines.spec import DataSpec

SIDES = st.integers(1, 3000)


def place(height: int, width: int, **options: object) -> tuple[list[int], list[int]]:
    placements = place_images(np.array([[height, width, 3]], np.int32), DataSpec(**options))
    return placements.window[0].tolist(), placements.target[0].tolist()


@pytest.mark.parametrize(
    ("options", "window", "target"),
    [
        ({}, [0, 0, 375, 500], [0, 0, 224, 224]),
        ({"fit": "crop"}, [0, 62, 375, 375], [0, 0, 224, 224]),
        # 375 pixels become 256, of which 224 are used: 328.125 of the image.
        ({"fit": "crop", "resize": 256}, [23, 86, 328, 328], [0, 0, 224, 224]),
        ({"fit": "pad"}, [0, 0, 375, 500], [28, 0, 168, 224]),
    ],
)
def test_a_photo_of_500_by_375_is_fitted(options, window, target):
    assert place(375, 500, image_size=224, **options) == (window, target)


def test_height_and_width_may_differ():
    assert place(100, 100, image_size=(50, 100), fit="crop") == ([25, 0, 50, 100], [0, 0, 50, 100])
    assert place(100, 100, image_size=(50, 100), fit="pad") == ([0, 0, 100, 100], [0, 25, 50, 50])


def test_the_thinnest_images_keep_at_least_one_pixel():
    assert place(1, 3000, image_size=8, fit="pad") == ([0, 0, 1, 3000], [3, 0, 1, 8])
    assert place(3000, 1, image_size=8, fit="crop") == ([1499, 0, 1, 1], [0, 0, 8, 8])


@given(height=SIDES, width=SIDES, fit=st.sampled_from(["stretch", "crop", "pad"]), side=st.integers(1, 300))
def test_windows_lie_in_the_image_and_targets_in_the_result(height, width, fit, side):
    window, target = place(height, width, image_size=(side, side + 7), fit=fit)
    for box, limits in ((window, (height, width)), (target, (side, side + 7))):
        for axis in (0, 1):
            assert box[axis] >= 0
            assert box[2 + axis] >= 1
            assert box[axis] + box[2 + axis] <= limits[axis]
            assert abs(2 * box[axis] + box[2 + axis] - limits[axis]) <= 1  # in the middle


@given(height=st.integers(50, 3000), width=st.integers(50, 3000), fit=st.sampled_from(["crop", "pad"]))
def test_proportions_are_kept(height, width, fit):
    window, target = place(height, width, image_size=100, fit=fit)
    scales = [target[2 + axis] / window[2 + axis] for axis in (0, 1)]
    rounding = max(0.5 / side for side in (*window[2:], *target[2:]))
    assert scales[0] / scales[1] == pytest.approx(1, abs=2.2 * rounding)


def test_a_box_moves_with_the_image():
    shape = np.array([375, 500, 3], np.int32)
    assert map_box((0.2, 0.2, 0.8, 0.6), shape, DataSpec(image_size=224)) == (0.2, 0.2, 0.8, 0.6)
    padded = map_box((0.0, 0.0, 1.0, 0.5), shape, DataSpec(image_size=224, fit="pad"))
    assert padded == pytest.approx((28 / 224, 0, 196 / 224, 0.5))
    cropped = map_box((0.0, 0.0, 1.0, 0.5), shape, DataSpec(image_size=224, fit="crop"))
    assert cropped == pytest.approx((0, 0, 1, (250 - 62) / 375))
    assert map_box((0.0, 0.0, 1.0, 0.1), shape, DataSpec(image_size=224, fit="crop")) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize": 256}, "set data.fit=crop"),
        ({"fit": "pad", "resize": 256}, "set data.fit=crop"),
        ({"image_size": 224, "fit": "crop", "resize": 200}, "use at least 224"),
        ({"fit": "squash"}, "stretch"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        check(DataSpec, settings, "data")
