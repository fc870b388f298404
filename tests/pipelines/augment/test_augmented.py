"""Colour, erasing and mixing on tiny images, worked out by hand, and everything together against plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipelines.augment.apply import augmented, neighbours, warp
from pipelines.augment.draw import draw
from pipelines.spec import AugmentSpec, DataSpec

IDENTITY = np.eye(3, 4, dtype=np.float32)
NONE = [0.0, 0.0, 0.0, 0.0]


def applied(
    images: Any, spec: AugmentSpec | None = None, **changes: Any
) -> tuple[np.ndarray, np.ndarray | None]:
    """uint8 images [B, H, W, C] after some changes."""
    batch = {"image": tf.constant(np.array(images, np.uint8))} | {
        k: tf.constant(v, tf.float32) for k, v in changes.items()
    }
    result, share = augmented(batch, spec)
    assert result.dtype == tf.float32
    return result.numpy(), None if share is None else share.numpy()


def grey(*rows: list[int]) -> np.ndarray:
    """One greyscale image, [H, W, 1]."""
    return np.array(rows)[:, :, None]


def test_without_parameters_images_are_only_cast() -> None:
    image = grey([0, 128, 255])
    found, share = applied([image])
    assert found[0].tolist() == image.tolist()
    assert share is None


def test_identities_change_no_bit() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3))
    found, share = applied(
        images, affine=[np.eye(2, 3)] * 2, colour=[IDENTITY] * 2, erase=[NONE] * 2, mix=[1, 1], cut=[NONE] * 2
    )
    np.testing.assert_array_equal(found, images)
    assert share.tolist() == [1, 1]


def test_each_image_is_warped_with_the_fill_of_the_spec() -> None:
    shift, stay = [[1, 0, 1 / 3], [0, 1, 0]], np.eye(2, 3)
    images, spec = [grey([1, 2, 3])] * 2, AugmentSpec(fill="constant", fill_value=7.0)
    assert applied(images, spec, affine=[shift, stay])[0][..., 0].tolist() == [[[2, 3, 7]], [[1, 2, 3]]]
    assert applied(images, affine=[shift, stay])[0][..., 0].tolist() == [[[2, 3, 3]], [[1, 2, 3]]]


def test_colours_are_mapped_and_clipped() -> None:
    pixel = [[[10, 20, 30]]]
    permute = [[0, 1, 0, 5], [0, 0, 2, -20], [1, 0, 0, 300]]  # rows: what each new channel is made of
    below = [[1, 0, 0, -11], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert applied([pixel, pixel], colour=[permute, below])[0][:, 0, 0].tolist() == [
        [25, 40, 255],
        [0, 20, 30],
    ]
    assert applied([grey([100, 200])], colour=[[[0.5, 10]]])[0][0, 0, :, 0].tolist() == [60, 110]


def test_a_box_is_erased_where_pixel_centres_lie_in_it() -> None:
    image, spec = grey([1, 2, 3, 4], [5, 6, 7, 8]), AugmentSpec(fill_value=9.0)
    boxes = [
        NONE,
        [0.3, 0.375, 1, 0.8],
        [0, 0, 0.25, 0.125],
        [0.25, 0.12, 0.26, 0.13],
    ]  # centres: y 1/4 3/4, x 1/8 3/8 5/8 7/8
    found = applied([image] * 4, spec, erase=boxes)[0][..., 0]
    assert found.tolist() == [
        [[1, 2, 3, 4], [5, 6, 7, 8]],
        [[1, 2, 3, 4], [5, 9, 9, 8]],
        [[1, 2, 3, 4], [5, 6, 7, 8]],
        [[9, 2, 3, 4], [5, 6, 7, 8]],
    ]


def test_the_erased_box_keeps_its_value_whatever_the_colour() -> None:
    assert applied([grey([1])], AugmentSpec(fill_value=9.0), colour=[[[0.5, 100]]], erase=[[0, 0, 1, 1]])[
        0
    ].tolist() == [[[[9]]]]


def test_mixup_blends_neighbours_each_by_its_own_share() -> None:
    images = [grey([10, 20]), grey([50, 100]), grey([1, 2]), grey([3, 4])]
    found, share = applied(images, mix=[0.75, 0.5, 1.0, 0.0])
    assert found[..., 0].tolist() == [[[20, 40]], [[30, 60]], [[1, 2]], [[1, 2]]]
    assert share.tolist() == [0.75, 0.5, 1.0, 0.0]


def test_cutmix_fills_a_box_with_the_neighbour_and_counts_its_pixels() -> None:
    images = [grey([1, 2, 3, 4], [5, 6, 7, 8]), grey([10, 20, 30, 40], [50, 60, 70, 80])]
    found, share = applied(
        images, cut=[[0, 0.2, 0.5, 1], [0.9, 0, 1, 1]]
    )  # three pixels; none, for all its width
    assert found[..., 0].tolist() == [[[1, 20, 30, 40], [5, 6, 7, 8]], [[10, 20, 30, 40], [50, 60, 70, 80]]]
    assert share.tolist() == [1 - 3 / 8, 1.0]


def test_what_is_mixed_in_is_the_neighbour_after_its_own_changes() -> None:
    found, share = applied(
        [grey([10, 20]), grey([50, 100])],
        AugmentSpec(fill_value=200.0),
        affine=[np.eye(2, 3), [[-1, 0, 1], [0, 1, 0]]],
        colour=[[[1, 0]], [[2, 1]]],
        erase=[NONE, [0, 0.5, 1, 1]],
        mix=[0.5, 1.0],
        cut=[NONE, [0, 0, 1, 0.5]],
    )
    assert found[..., 0].tolist() == [[[105.5, 110]], [[10, 200]]]  # the second was [201, 200] by itself
    assert share.tolist() == [0.5, 0.5]


def test_neighbours_swap_in_pairs() -> None:
    assert neighbours(tf.constant([1, 2, 3, 4])).numpy().tolist() == [2, 1, 4, 3]


def plain(image: np.ndarray, number: int, drawn: dict[str, np.ndarray], fill_value: float) -> np.ndarray:
    """One warped image after colour and erasing, pixel by pixel."""
    height, width, _ = image.shape
    result = np.empty(image.shape)
    top, left, bottom, right = drawn["erase"][number]
    for row, column in np.ndindex(height, width):
        colour = np.clip(drawn["colour"][number].astype(np.float64) @ (*image[row, column], 1), 0, 255)
        erased = top <= (row + 0.5) / height < bottom and left <= (column + 0.5) / width < right
        result[row, column] = fill_value if erased else colour
    return result


@pytest.mark.parametrize("size", [None, (15, 31)])
@pytest.mark.parametrize("outer", [None, True])
def test_everything_together_is_what_plain_numpy_makes_of_it(
    outer: bool | None, size: tuple[int, int] | None
) -> None:
    """Compiled in its parts, as in a step, and compiled as one."""
    height, width = size or (19, 23)
    spec = AugmentSpec(
        rotation=40, shift=0.3, zoom=0.3, flip=True, crop=(0.3, 0.9), fill="reflect", fill_value=60.0,
        brightness=0.3, contrast=0.3, saturation=0.5, hue=60, erase=0.5, mixup=0.4, cutmix=1.0, size=size,
    )  # fmt: skip
    data = DataSpec(image_size=(19, 23))
    images = np.random.default_rng(4).integers(0, 256, (32, 19, 23, 3)).astype(np.uint8)
    drawn = draw(spec, 8, 1, range(32), data)
    batch = {"image": tf.constant(images)} | {name: tf.constant(values) for name, values in drawn.items()}
    whole = tf.function(lambda batch: augmented(batch, spec), jit_compile=outer)
    found, shares = whole(batch)
    warped = warp(batch["image"], batch["affine"], "reflect", size=size).numpy()
    before = [plain(image, number, drawn, 60.0) for number, image in enumerate(warped)]
    for place in range(32):
        own, other, share = before[place], before[place ^ 1], float(drawn["mix"][place])
        expected = share * own + (1 - share) * other
        top, left, bottom, right = drawn["cut"][place]
        rows = [row for row in range(height) if top <= (row + 0.5) / height < bottom]
        columns = [column for column in range(width) if left <= (column + 0.5) / width < right]
        expected[np.ix_(rows, columns)] = other[np.ix_(rows, columns)]
        np.testing.assert_allclose(found[place], expected, atol=0.02)
        np.testing.assert_allclose(
            shares[place], share * (1 - len(rows) * len(columns) / (height * width)), atol=1e-6
        )
