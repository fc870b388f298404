"""The warp on tiny images, pixel by pixel, and against SciPy's and Keras' resampling."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from drawing import SQUARE, draw_by_name
from scipy import ndimage

from pipelines.augment.draw import draw
from pipelines.augment.geometry import compose_matrices
from pipelines.augment.rotation import Rotation
from pipelines.augment.warp import warp
from pipelines.spec import AugmentSpec, DataSpec

FAR = AugmentSpec(rotation=180, shift=1.0, shear=30, zoom=0.9, flip=True, flip_vertical=True)
FILLS = ("nearest", "reflect", "constant", "wrap")

IDENTITY = [[1, 0, 0], [0, 1, 0]]
GRID = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8)
WIDE = np.array([[10, 20, 30, 40], [50, 60, 70, 80]], np.uint8)


def warp_image(
    image: np.ndarray, matrix: object, fill: str = "nearest", fill_value: float = 0.0
) -> np.ndarray:
    """Warps one image [H, W] by one matrix."""
    result = warp(tf.constant(image[None, :, :, None]), tf.constant([matrix], tf.float32), fill, fill_value)
    assert result.dtype == tf.float32
    return result.numpy()[0, :, :, 0]


def warp_by_definition(
    image: np.ndarray, matrix: np.ndarray, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Warps an image [H, W, C] pixel by pixel in float64, to one of some size."""
    height, width, channels = image.shape
    rows, columns = size or (height, width)
    result = np.empty((rows, columns, channels))
    for row in range(rows):
        for column in range(columns):
            x, y = matrix.astype(np.float64) @ ((column + 0.5) / columns, (row + 0.5) / rows, 1)
            x = np.clip(x * width - 0.5, 0, width - 1)
            y = np.clip(y * height - 0.5, 0, height - 1)
            weights_y = np.maximum(0, 1 - np.abs(np.arange(height) - y))
            weights_x = np.maximum(0, 1 - np.abs(np.arange(width) - x))
            result[row, column] = np.einsum("h,w,hwc->c", weights_y, weights_x, image.astype(np.float64))
    return result


@pytest.mark.parametrize(
    ("size", "dtype", "fill"),
    [
        *((size, np.uint8, "nearest") for size in ((1, 1), (5, 7), (28, 28), (150, 150), (97, 131))),
        *(((97, 131), np.uint8, fill) for fill in FILLS[1:]),
        ((97, 131), np.float32, "nearest"),
    ],
)
def test_the_identity_changes_no_bit(size: tuple[int, int], dtype: type, fill: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype(dtype)
    result = warp(tf.constant(image), tf.constant([IDENTITY] * 2, tf.float32), fill, 77.0).numpy()
    np.testing.assert_array_equal(result, image.astype(np.float32))


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        # shows what lies to the right; the edge is repeated
        ([[1, 0, 1 / 3], [0, 1, 0]], [[2, 3, 3], [5, 6, 6], [8, 9, 9]]),
        ([[1, 0, 0], [0, 1, -1 / 3]], [[1, 2, 3], [1, 2, 3], [4, 5, 6]]),
        ([[1, 0, 5], [0, 1, 5]], [[9, 9, 9]] * 3),
        ([[-1, 0, 1], [0, 1, 0]], [[3, 2, 1], [6, 5, 4], [9, 8, 7]]),
        ([[0, -1, 1], [1, 0, 0]], [[3, 6, 9], [2, 5, 8], [1, 4, 7]]),  # 90 degrees, as theta=90 gives
        ([[1, 0, 1 / 6], [0, 1, 0]], [[1.5, 2.5, 3], [4.5, 5.5, 6], [7.5, 8.5, 9]]),  # half a pixel
        ([[1, 0, 0], [0, 1, 1 / 6]], [[2.5, 3.5, 4.5], [5.5, 6.5, 7.5], [7, 8, 9]]),
        # a quarter of a pixel, both ways
        ([[1, 0, 1 / 12], [0, 1, 1 / 12]], [[2, 3, 3.75], [5, 6, 6.75], [7.25, 8.25, 9]]),
        ([[3, 0, -1], [0, 1, 0]], [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
    ],
)
def test_pixels_of_a_square_image(matrix: object, expected: object) -> None:
    np.testing.assert_allclose(warp_image(GRID, matrix), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[1, 0, 0.25], [0, 1, 0]], [[20, 30, 40, 40], [60, 70, 80, 80]]),
        ([[1, 0, 0], [0, 1, 0.5]], [[50, 60, 70, 80], [50, 60, 70, 80]]),
        ([[-1, 0, 1], [0, 1, 0]], [[40, 30, 20, 10], [80, 70, 60, 50]]),
        # 90 degrees: the middle 2 x 2 is rotated, the rest lies beyond the upper and lower edge
        ([[0, -0.5, 0.75], [2, 0, -0.5]], [[30, 30, 70, 70], [20, 20, 60, 60]]),
    ],
)
def test_pixels_of_a_wide_image(matrix: object, expected: object) -> None:
    np.testing.assert_allclose(warp_image(WIDE, matrix), expected, atol=1e-4)


def test_whole_shifts_and_flips_do_not_blend() -> None:
    image = np.random.default_rng(1).integers(0, 256, (150, 150)).astype(np.uint8)
    np.testing.assert_array_equal(warp_image(image, [[-1, 0, 1], [0, 1, 0]]), image[:, ::-1])
    np.testing.assert_array_equal(warp_image(image, [[1, 0, 0.5], [0, 1, 0]])[:, :75], image[:, 75:])


ROW = np.array([[1, 2, 3, 4]], np.uint8)


@pytest.mark.parametrize(
    ("fill", "pixels", "expected"),
    [
        ("nearest", 6, [4, 4, 4, 4]),
        ("reflect", 2, [3, 4, 4, 3]),
        ("reflect", 6, [2, 1, 1, 2]),
        ("reflect", -3, [3, 2, 1, 1]),
        ("reflect", -12, [4, 3, 2, 1]),
        ("wrap", 2, [3, 4, 1, 2]),
        ("wrap", -1, [4, 1, 2, 3]),
        ("wrap", -9, [4, 1, 2, 3]),
        ("wrap", 0.5, [1.5, 2.5, 3.5, 2.5]),  # the last pixel blends into the first
        ("constant", 2, [3, 4, 9, 9]),
        ("constant", -3, [9, 9, 9, 1]),
        ("constant", 0.5, [1.5, 2.5, 3.5, 6.5]),  # the last pixel blends into the fill value
        ("constant", 40, [9, 9, 9, 9]),
    ],
)
def test_pixels_beyond_the_edge(fill: str, pixels: float, expected: list[float]) -> None:
    np.testing.assert_allclose(
        warp_image(ROW, [[1, 0, pixels / 4], [0, 1, 0]], fill, 9.0), [expected], atol=1e-6
    )
    upright = warp_image(ROW.T.copy(), [[1, 0, 0], [0, 1, pixels / 4]], fill, 9.0)
    np.testing.assert_allclose(upright[:, 0], expected, atol=1e-6)


SCIPY = {"nearest": "nearest", "reflect": "reflect", "wrap": "grid-wrap", "constant": "grid-constant"}


@pytest.mark.parametrize("fill", FILLS)
def test_every_fill_is_the_mode_of_scipy(fill: str) -> None:
    height = 9
    width = 13
    images = np.random.default_rng(5).integers(0, 256, (8, height, width, 2)).astype(np.uint8)
    affine = draw(FAR, 3, 0, range(8), DataSpec(image_size=(height, width)))["affine"]
    found = warp(tf.constant(images), tf.constant(affine), fill, 40.0).numpy()
    # (row, column) in pixels to (x, y) in the unit square
    to_unit = np.array([[0, 1 / width, 0.5 / width], [1 / height, 0, 0.5 / height], [0, 0, 1]])
    for place, matrix in enumerate(affine.astype(np.float64)):
        pixels = np.linalg.inv(to_unit) @ np.vstack([matrix, [0, 0, 1]]) @ to_unit
        for channel in range(2):
            image = images[place, ..., channel].astype(np.float64)
            expected = ndimage.affine_transform(image, pixels, order=1, mode=SCIPY[fill], cval=40.0)
            np.testing.assert_allclose(found[place, ..., channel], expected, atol=5e-3)


@pytest.mark.parametrize("fill", ["nearest", "reflect", "constant"])
def test_the_pixels_are_those_of_keras_image_data_generator(fill: str) -> None:
    """With `constant`, Keras does not blend edge pixels with the fill value, so they are not compared."""
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    size = 11
    rows = range(12)
    images = np.random.default_rng(6).integers(0, 256, (12, size, size, 3)).astype(np.uint8)
    spec = FAR.model_copy(update={"zoom": 0.5, "shift": 0.5})
    affine = draw(spec, 2, 0, rows, DataSpec(image_size=(size, size)))["affine"]
    found = warp(tf.constant(images), tf.constant(affine), fill, 33.0).numpy()
    generator = ImageDataGenerator(fill_mode=fill, cval=33.0, data_format="channels_last")
    drawn = draw_by_name(spec, rows, seed=2)
    for row in rows:
        settings = {
            "theta": drawn["rotation"][row],
            "tx": drawn["shift"].x[row] * size,
            "ty": drawn["shift"].y[row] * size,
            "shear": drawn["shear"][row],
            "zx": drawn["zoom"].x[row],
            "zy": drawn["zoom"].y[row],
            "flip_horizontal": drawn["flip"].horizontally[row],
            "flip_vertical": drawn["flip"].vertically[row],
        }
        expected = generator.apply_transform(images[row].astype(np.float32), settings)
        is_compared = ~shows_edge(affine[row], size) if fill == "constant" else np.ones((size, size), bool)
        assert is_compared.mean() > 0.4
        np.testing.assert_allclose(found[row][is_compared], expected[is_compared], atol=5e-3)


def shows_edge(matrix: np.ndarray, size: int) -> np.ndarray:
    """Tells which output pixels lie within one pixel beyond the edge of a square image, bool [size, size]."""
    centers = (np.arange(size) + 0.5) / size
    x, y = np.einsum("ij,jhw->ihw", matrix, np.stack([*np.meshgrid(centers, centers), np.ones((size, size))]))
    x = x * size - 0.5
    y = y * size - 0.5
    is_before = (np.minimum(x, y) < 0) & (np.minimum(x, y) > -1)
    is_after = (np.maximum(x, y) > size - 1) & (np.maximum(x, y) < size)
    return is_before | is_after


def test_compiled_or_not_positions_are_the_same() -> None:
    """A product fused with a sum in one loop but not in another could blend pixels that are no neighbours.

    Noise shows a position that is off by 1e-5 of a pixel; the blend alone differs by less than 1e-4.
    """
    images = tf.constant(np.random.default_rng(7).integers(0, 256, (16, 150, 150, 3)).astype(np.uint8))
    affine = tf.constant(draw(FAR, 3, 0, range(16), DataSpec())["affine"])
    compiled = warp(images, affine)
    tf.config.run_functions_eagerly(True)
    try:
        eager = warp(images, affine)
    finally:
        tf.config.run_functions_eagerly(False)
    np.testing.assert_allclose(compiled, eager, atol=5e-4)


@pytest.mark.parametrize("fill", ["nearest", "reflect", "wrap", "constant"])
def test_packed_colours_are_warped_as_separate_channels_are(fill: str) -> None:
    levels = (
        np.random.default_rng(8)
        .permuted(np.tile(np.arange(256), (6, 1)), axis=1)
        .reshape(2, 16, 16, 3)
        .astype(np.uint8)
    )
    affine = tf.constant(draw(FAR, 3, 0, range(2), DataSpec(image_size=(16, 16)))["affine"])
    apart = [warp(tf.constant(levels[..., k : k + 1]), affine, fill, 7.5) for k in range(3)]
    np.testing.assert_allclose(
        warp(tf.constant(levels), affine, fill, 7.5), np.concatenate(apart, axis=-1), atol=1e-4
    )


def test_every_image_has_its_own_matrix_and_channels_do_not_mix() -> None:
    images = np.random.default_rng(2).integers(0, 256, (6, 5, 7, 3)).astype(np.uint8)
    spec = AugmentSpec(rotation=180, shift=0.3, shear=30, zoom=0.5, flip=True)
    affine = draw(spec, 4, 0, range(6), DataSpec(image_size=(5, 7)))["affine"]
    expected = [warp_by_definition(image, matrix) for image, matrix in zip(images, affine, strict=True)]
    np.testing.assert_allclose(warp(tf.constant(images), tf.constant(affine)), expected, atol=2e-3)


@pytest.mark.parametrize("size", [(4, 9), (11, 5), (5, 7)])
def test_the_result_has_the_requested_size(size: tuple[int, int]) -> None:
    images = np.random.default_rng(9).integers(0, 256, (6, 5, 7, 3)).astype(np.uint8)
    spec = AugmentSpec(rotation=180, shift=0.3, shear=30, zoom=0.5, flip=True, crop=(0.3, 1.0), size=size)
    affine = draw(spec, 4, 0, range(6), DataSpec(image_size=(5, 7)))["affine"]
    expected = [warp_by_definition(image, matrix, size) for image, matrix in zip(images, affine, strict=True)]
    np.testing.assert_allclose(warp(tf.constant(images), tf.constant(affine), size=size), expected, atol=2e-3)


@pytest.mark.parametrize("size", [(112, 112), (200, 160)])
def test_size_alone_resizes_as_tensorflow_does(size: tuple[int, int]) -> None:
    images = np.random.default_rng(10).integers(0, 256, (2, 144, 144, 3)).astype(np.uint8)
    affine = draw(AugmentSpec(size=size), 4, 0, range(2), DataSpec(image_size=(144, 144)))["affine"]
    np.testing.assert_array_equal(affine, np.float32([IDENTITY] * 2))
    np.testing.assert_allclose(
        warp(tf.constant(images), tf.constant(affine), size=size), tf.image.resize(images, size), atol=2e-2
    )


def test_rotation_by_right_angles_equals_numpys() -> None:
    image = np.random.default_rng(3).integers(0, 256, (6, 6)).astype(np.uint8)
    for turns in range(4):
        angle = np.array([90.0 * turns])
        transform = Rotation(AugmentSpec()).transform(angle, SQUARE)
        (matrix,) = compose_matrices([transform], [], 1, aspect=1.0)
        np.testing.assert_allclose(warp_image(image, matrix), np.rot90(image, turns), atol=1e-3)


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
