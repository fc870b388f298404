"""The warp on tiny images, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from pipelines.augment.apply import warp
from pipelines.augment.draw import AffineParameters, affine_matrices, draw_affine
from pipelines.spec import AugmentSpec

IDENTITY = [[1, 0, 0], [0, 1, 0]]
GRID = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8)
WIDE = np.array([[10, 20, 30, 40], [50, 60, 70, 80]], np.uint8)


def warped(image: np.ndarray, matrix: object) -> np.ndarray:
    """One image [H, W] through one matrix."""
    result = warp(tf.constant(image[None, :, :, None]), tf.constant([matrix], tf.float32))
    assert result.dtype == tf.float32
    return result.numpy()[0, :, :, 0]


def reference(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The definition, pixel by pixel in float64: image [H, W, C]."""
    height, width, _ = image.shape
    result = np.empty(image.shape)
    for row in range(height):
        for column in range(width):
            x, y = matrix.astype(np.float64) @ ((column + 0.5) / width, (row + 0.5) / height, 1)
            x, y = np.clip(x * width - 0.5, 0, width - 1), np.clip(y * height - 0.5, 0, height - 1)
            weights_y = np.maximum(0, 1 - np.abs(np.arange(height) - y))
            weights_x = np.maximum(0, 1 - np.abs(np.arange(width) - x))
            result[row, column] = np.einsum("h,w,hwc->c", weights_y, weights_x, image.astype(np.float64))
    return result


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (28, 28), (150, 150), (97, 131)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_identity_changes_no_bit(size: tuple[int, int], dtype: type) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype(dtype)
    result = warp(tf.constant(image), tf.constant([IDENTITY] * 2, tf.float32)).numpy()
    np.testing.assert_array_equal(result, image.astype(np.float32))


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[1, 0, 1 / 3], [0, 1, 0]], [[2, 3, 3], [5, 6, 6], [8, 9, 9]]),  # shows what lies to the right; the edge goes on
        ([[1, 0, 0], [0, 1, -1 / 3]], [[1, 2, 3], [1, 2, 3], [4, 5, 6]]),
        ([[1, 0, 5], [0, 1, 5]], [[9, 9, 9]] * 3),
        ([[-1, 0, 1], [0, 1, 0]], [[3, 2, 1], [6, 5, 4], [9, 8, 7]]),
        ([[0, -1, 1], [1, 0, 0]], [[3, 6, 9], [2, 5, 8], [1, 4, 7]]),  # 90 degrees, as theta=90 gives
        ([[1, 0, 1 / 6], [0, 1, 0]], [[1.5, 2.5, 3], [4.5, 5.5, 6], [7.5, 8.5, 9]]),  # half a pixel
        ([[1, 0, 0], [0, 1, 1 / 6]], [[2.5, 3.5, 4.5], [5.5, 6.5, 7.5], [7, 8, 9]]),
        ([[1, 0, 1 / 12], [0, 1, 1 / 12]], [[2, 3, 3.75], [5, 6, 6.75], [7.25, 8.25, 9]]),  # a quarter of one, both ways
        ([[3, 0, -1], [0, 1, 0]], [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
    ],
)
def test_pixels_of_a_square_image(matrix: object, expected: object) -> None:
    np.testing.assert_allclose(warped(GRID, matrix), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[1, 0, 0.25], [0, 1, 0]], [[20, 30, 40, 40], [60, 70, 80, 80]]),
        ([[1, 0, 0], [0, 1, 0.5]], [[50, 60, 70, 80], [50, 60, 70, 80]]),
        ([[-1, 0, 1], [0, 1, 0]], [[40, 30, 20, 10], [80, 70, 60, 50]]),
        # 90 degrees: the middle 2 x 2 turns in itself, the rest lies beyond the upper and lower edge
        ([[0, -0.5, 0.75], [2, 0, -0.5]], [[30, 30, 70, 70], [20, 20, 60, 60]]),
    ],
)
def test_pixels_of_a_wide_image(matrix: object, expected: object) -> None:
    np.testing.assert_allclose(warped(WIDE, matrix), expected, atol=1e-4)


def test_whole_shifts_and_flips_blend_nothing() -> None:
    image = np.random.default_rng(1).integers(0, 256, (150, 150)).astype(np.uint8)
    np.testing.assert_array_equal(warped(image, [[-1, 0, 1], [0, 1, 0]]), image[:, ::-1])
    np.testing.assert_array_equal(warped(image, [[1, 0, 0.5], [0, 1, 0]])[:, :75], image[:, 75:])


def test_every_image_has_its_own_matrix_and_channels_do_not_mix() -> None:
    images = np.random.default_rng(2).integers(0, 256, (6, 5, 7, 3)).astype(np.uint8)
    spec = AugmentSpec(rotation=180, shift=0.3, shear=30, zoom=0.5, flip=True)
    affine = draw_affine(spec, 4, 0, range(6), aspect=7 / 5)
    expected = [reference(image, matrix) for image, matrix in zip(images, affine, strict=True)]
    np.testing.assert_allclose(warp(tf.constant(images), tf.constant(affine)), expected, atol=2e-3)


def test_a_rotation_by_right_angles_is_the_same_as_numpys() -> None:
    image = np.random.default_rng(3).integers(0, 256, (6, 6)).astype(np.uint8)
    for turns in range(4):
        zero, one = np.zeros(1), np.ones(1)
        matrices = affine_matrices(AffineParameters(zero + 90 * turns, zero, zero, zero, one, one, zero.astype(bool)))
        np.testing.assert_allclose(warped(image, matrices[0]), np.rot90(image, turns), atol=1e-3)


def test_it_runs_inside_another_function_with_an_unknown_batch() -> None:
    @tf.function(input_signature=[tf.TensorSpec((None, 3, 3, 1), tf.uint8), tf.TensorSpec((None, 2, 3))])
    def step(images: tf.Tensor, affine: tf.Tensor) -> tf.Tensor:
        return warp(images, affine) + 1.0

    for count in (1, 3):
        result = step(np.stack([GRID[..., None]] * count), np.float32([[[-1, 0, 1], [0, 1, 0]]] * count))
        assert result.numpy()[-1, 0, :, 0].tolist() == [4, 3, 2]


def test_it_runs_in_a_replica_of_a_strategy() -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])

    @tf.function
    def step(images: tf.Tensor, affine: tf.Tensor) -> tf.Tensor:
        return strategy.run(warp, (images, affine))

    result = step(tf.constant(GRID[None, :, :, None]), tf.constant([[[-1, 0, 1], [0, 1, 0]]], tf.float32))
    assert result.numpy()[0, 0, :, 0].tolist() == [3, 2, 1]
