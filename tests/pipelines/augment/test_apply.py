"""Colour, erasing and mixing on tiny images by hand, and all augmentations together against plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipelines.augment.apply import apply_augmentations, swap_neighbours
from pipelines.augment.draw import draw
from pipelines.augment.warp import warp
from pipelines.spec import AugmentSpec, DataSpec

IDENTITY = np.eye(3, 4, dtype=np.float32)
NONE = [0.0, 0.0, 0.0, 0.0]


def apply(
    images: Any, spec: AugmentSpec | None = None, **parameters: Any
) -> tuple[np.ndarray, np.ndarray | None]:
    """Applies parameters to uint8 images [B, H, W, C]."""
    batch = {"image": tf.constant(np.array(images, np.uint8))}
    batch |= {name: tf.constant(values, tf.float32) for name, values in parameters.items()}
    result, share = apply_augmentations(batch, spec)
    assert result.dtype == tf.float32
    return result.numpy(), None if share is None else share.numpy()


def grey(*rows: list[int]) -> np.ndarray:
    """One greyscale image, [H, W, 1]."""
    return np.array(rows)[:, :, None]


def test_without_parameters_images_are_only_cast() -> None:
    image = grey([0, 128, 255])
    found, share = apply([image])
    assert found[0].tolist() == image.tolist()
    assert share is None


def test_identities_change_no_bit() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3))
    found, share = apply(
        images, affine=[np.eye(2, 3)] * 2, colour=[IDENTITY] * 2, erase=[NONE] * 2, mix=[1, 1], cut=[NONE] * 2
    )
    np.testing.assert_array_equal(found, images)
    assert share.tolist() == [1, 1]


def test_each_image_is_warped_with_the_fill_of_the_spec() -> None:
    affine = [[[1, 0, 1 / 3], [0, 1, 0]], np.eye(2, 3)]
    images = [grey([1, 2, 3])] * 2
    spec = AugmentSpec(fill="constant", fill_value=7.0)
    assert apply(images, spec, affine=affine)[0][..., 0].tolist() == [[[2, 3, 7]], [[1, 2, 3]]]
    assert apply(images, affine=affine)[0][..., 0].tolist() == [[[2, 3, 3]], [[1, 2, 3]]]


def test_colours_are_mapped_and_clipped() -> None:
    pixel = [[[10, 20, 30]]]
    permute = [[0, 1, 0, 5], [0, 0, 2, -20], [1, 0, 0, 300]]  # rows: what each new channel is made of
    below = [[1, 0, 0, -11], [0, 1, 0, 0], [0, 0, 1, 0]]
    found = apply([pixel, pixel], colour=[permute, below])[0]
    assert found[:, 0, 0].tolist() == [[25, 40, 255], [0, 20, 30]]
    assert apply([grey([100, 200])], colour=[[[0.5, 10]]])[0][0, 0, :, 0].tolist() == [60, 110]


def test_a_box_erases_the_pixels_whose_centers_lie_in_it() -> None:
    image = grey([1, 2, 3, 4], [5, 6, 7, 8])
    # pixel centers: y 1/4 3/4, x 1/8 3/8 5/8 7/8
    boxes = [NONE, [0.3, 0.375, 1, 0.8], [0, 0, 0.25, 0.125], [0.25, 0.12, 0.26, 0.13]]
    found = apply([image] * 4, AugmentSpec(fill_value=9.0), erase=boxes)[0][..., 0]
    assert found.tolist() == [
        [[1, 2, 3, 4], [5, 6, 7, 8]],
        [[1, 2, 3, 4], [5, 9, 9, 8]],
        [[1, 2, 3, 4], [5, 6, 7, 8]],
        [[9, 2, 3, 4], [5, 6, 7, 8]],
    ]


def test_colour_does_not_change_erased_boxes() -> None:
    spec = AugmentSpec(fill_value=9.0)
    found = apply([grey([1])], spec, colour=[[[0.5, 100]]], erase=[[0, 0, 1, 1]])[0]
    assert found.tolist() == [[[[9]]]]


def test_mixup_blends_neighbours_each_by_its_own_share() -> None:
    images = [grey([10, 20]), grey([50, 100]), grey([1, 2]), grey([3, 4])]
    found, share = apply(images, mix=[0.75, 0.5, 1.0, 0.0])
    assert found[..., 0].tolist() == [[[20, 40]], [[30, 60]], [[1, 2]], [[1, 2]]]
    assert share.tolist() == [0.75, 0.5, 1.0, 0.0]


def test_cutmix_fills_a_box_with_the_neighbour_and_counts_its_pixels() -> None:
    images = [grey([1, 2, 3, 4], [5, 6, 7, 8]), grey([10, 20, 30, 40], [50, 60, 70, 80])]
    # the first box covers three pixels; the second none, although it is as wide as the image
    found, share = apply(images, cut=[[0, 0.2, 0.5, 1], [0.9, 0, 1, 1]])
    assert found[..., 0].tolist() == [[[1, 20, 30, 40], [5, 6, 7, 8]], [[10, 20, 30, 40], [50, 60, 70, 80]]]
    assert share.tolist() == [1 - 3 / 8, 1.0]


def test_images_are_mixed_with_the_changed_neighbour() -> None:
    found, share = apply(
        [grey([10, 20]), grey([50, 100])],
        AugmentSpec(fill_value=200.0),
        affine=[np.eye(2, 3), [[-1, 0, 1], [0, 1, 0]]],
        colour=[[[1, 0]], [[2, 1]]],
        erase=[NONE, [0, 0.5, 1, 1]],
        mix=[0.5, 1.0],
        cut=[NONE, [0, 0, 1, 0.5]],
    )
    assert found[..., 0].tolist() == [[[105.5, 110]], [[10, 200]]]  # the second alone was [201, 200]
    assert share.tolist() == [0.5, 0.5]


def test_neighbours_swap_in_pairs() -> None:
    assert swap_neighbours(tf.constant([1, 2, 3, 4])).numpy().tolist() == [2, 1, 4, 3]


def change_pixels(
    image: np.ndarray, number: int, drawn: dict[str, np.ndarray], fill_value: float
) -> np.ndarray:
    """Applies colour and erasing to one warped image, pixel by pixel."""
    height, width, _ = image.shape
    result = np.empty(image.shape)
    top, left, bottom, right = drawn["erase"][number]
    for row, column in np.ndindex(height, width):
        colour = np.clip(drawn["colour"][number].astype(np.float64) @ (*image[row, column], 1), 0, 255)
        is_erased = top <= (row + 0.5) / height < bottom and left <= (column + 0.5) / width < right
        result[row, column] = fill_value if is_erased else colour
    return result


@pytest.mark.parametrize("size", [None, (15, 31)])
@pytest.mark.parametrize("jit_compile", [None, True])
def test_all_augmentations_together_equal_plain_numpy(
    jit_compile: bool | None, size: tuple[int, int] | None
) -> None:
    """Compiled pass by pass, as in a training step, and compiled as a whole."""
    height, width = size or (19, 23)
    spec = AugmentSpec(
        rotation=40, shift=0.3, zoom=0.3, flip=True, crop=(0.3, 0.9), fill="reflect", fill_value=60.0,
        brightness=0.3, contrast=0.3, saturation=0.5, hue=60, erase=0.5, mixup=0.4, cutmix=1.0, size=size,
    )  # fmt: skip
    data = DataSpec(image_size=(19, 23))
    images = np.random.default_rng(4).integers(0, 256, (32, 19, 23, 3)).astype(np.uint8)
    drawn = draw(spec, 8, 1, range(32), data)
    batch = {"image": tf.constant(images)} | {name: tf.constant(values) for name, values in drawn.items()}
    whole = tf.function(lambda batch: apply_augmentations(batch, spec), jit_compile=jit_compile)
    found, shares = whole(batch)
    images = warp(batch["image"], batch["affine"], "reflect", size=size).numpy()
    before = [change_pixels(image, number, drawn, 60.0) for number, image in enumerate(images)]
    for index in range(32):
        own = before[index]
        other = before[index ^ 1]
        share = float(drawn["mix"][index])
        expected = share * own + (1 - share) * other
        top, left, bottom, right = drawn["cut"][index]
        rows = [row for row in range(height) if top <= (row + 0.5) / height < bottom]
        columns = [column for column in range(width) if left <= (column + 0.5) / width < right]
        expected[np.ix_(rows, columns)] = other[np.ix_(rows, columns)]
        np.testing.assert_allclose(found[index], expected, atol=0.02)
        share *= 1 - len(rows) * len(columns) / (height * width)
        np.testing.assert_allclose(shares[index], share, atol=1e-6)
