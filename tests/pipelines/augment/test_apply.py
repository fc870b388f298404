"""The warp on tiny images, pixel by pixel, and against SciPy's and Keras' resampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from pipelines.augment import apply
from pipelines.augment.apply import warp
from pipelines.augment.draw import draw
from pipelines.augment.geometry import affine_matrices, affine_parameters
from pipelines.augment.philox import uniform
from pipelines.spec import AugmentSpec, DataSpec

FAR = AugmentSpec(rotation=180, shift=1.0, shear=30, zoom=0.9, flip=True, flip_vertical=True)
FILLS = ("nearest", "reflect", "constant", "wrap")

IDENTITY = [[1, 0, 0], [0, 1, 0]]
GRID = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8)
WIDE = np.array([[10, 20, 30, 40], [50, 60, 70, 80]], np.uint8)


def warped(image: np.ndarray, matrix: object, fill: str = "nearest", fill_value: float = 0.0) -> np.ndarray:
    """One image [H, W] through one matrix."""
    result = warp(tf.constant(image[None, :, :, None]), tf.constant([matrix], tf.float32), fill, fill_value)
    assert result.dtype == tf.float32
    return result.numpy()[0, :, :, 0]


def reference(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """The definition, pixel by pixel in float64: image [H, W, C] to one of some size."""
    height, width, channels = image.shape
    rows, columns = size or (height, width)
    result = np.empty((rows, columns, channels))
    for row in range(rows):
        for column in range(columns):
            x, y = matrix.astype(np.float64) @ ((column + 0.5) / columns, (row + 0.5) / rows, 1)
            x, y = np.clip(x * width - 0.5, 0, width - 1), np.clip(y * height - 0.5, 0, height - 1)
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
        (
            [[1, 0, 1 / 3], [0, 1, 0]],
            [[2, 3, 3], [5, 6, 6], [8, 9, 9]],
        ),  # shows what lies to the right; the edge goes on
        ([[1, 0, 0], [0, 1, -1 / 3]], [[1, 2, 3], [1, 2, 3], [4, 5, 6]]),
        ([[1, 0, 5], [0, 1, 5]], [[9, 9, 9]] * 3),
        ([[-1, 0, 1], [0, 1, 0]], [[3, 2, 1], [6, 5, 4], [9, 8, 7]]),
        ([[0, -1, 1], [1, 0, 0]], [[3, 6, 9], [2, 5, 8], [1, 4, 7]]),  # 90 degrees, as theta=90 gives
        ([[1, 0, 1 / 6], [0, 1, 0]], [[1.5, 2.5, 3], [4.5, 5.5, 6], [7.5, 8.5, 9]]),  # half a pixel
        ([[1, 0, 0], [0, 1, 1 / 6]], [[2.5, 3.5, 4.5], [5.5, 6.5, 7.5], [7, 8, 9]]),
        (
            [[1, 0, 1 / 12], [0, 1, 1 / 12]],
            [[2, 3, 3.75], [5, 6, 6.75], [7.25, 8.25, 9]],
        ),  # a quarter of one, both ways
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
        ("constant", 0.5, [1.5, 2.5, 3.5, 6.5]),  # the last pixel blends into what lies beyond
        ("constant", 40, [9, 9, 9, 9]),
    ],
)
def test_what_lies_beyond_the_edge(fill: str, pixels: float, expected: list[float]) -> None:
    np.testing.assert_allclose(warped(ROW, [[1, 0, pixels / 4], [0, 1, 0]], fill, 9.0), [expected], atol=1e-6)
    upright = warped(ROW.T.copy(), [[1, 0, 0], [0, 1, pixels / 4]], fill, 9.0)
    np.testing.assert_allclose(upright[:, 0], expected, atol=1e-6)


SCIPY = {"nearest": "nearest", "reflect": "reflect", "wrap": "grid-wrap", "constant": "grid-constant"}


@pytest.mark.parametrize("fill", FILLS)
def test_every_fill_is_the_mode_of_scipy(fill: str) -> None:
    height, width = 9, 13
    images = np.random.default_rng(5).integers(0, 256, (8, height, width, 2)).astype(np.uint8)
    affine = draw(FAR, 3, 0, range(8), DataSpec(image_size=(height, width)))["affine"]
    found = warp(tf.constant(images), tf.constant(affine), fill, 40.0).numpy()
    to_unit = np.array(
        [[0, 1 / width, 0.5 / width], [1 / height, 0, 0.5 / height], [0, 0, 1]]
    )  # (row, column) to (x, y)
    for place, matrix in enumerate(affine.astype(np.float64)):
        pixels = np.linalg.inv(to_unit) @ np.vstack([matrix, [0, 0, 1]]) @ to_unit
        for channel in range(2):
            image = images[place, ..., channel].astype(np.float64)
            expected = ndimage.affine_transform(image, pixels, order=1, mode=SCIPY[fill], cval=40.0)
            np.testing.assert_allclose(found[place, ..., channel], expected, atol=5e-3)


@pytest.mark.parametrize("fill", ["nearest", "reflect", "constant"])
def test_the_pixels_are_those_of_keras_image_data_generator(fill: str) -> None:
    """With `constant`, Keras blends nothing into the fill value: the outer half of an edge pixel is lost there, and left out here."""
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    size, rows = 11, range(12)
    images = np.random.default_rng(6).integers(0, 256, (12, size, size, 3)).astype(np.uint8)
    parameters = affine_parameters(
        FAR.model_copy(update={"zoom": 0.5, "shift": 0.5}), uniform(2, 0, rows), rows
    )
    affine = tf.constant(affine_matrices(parameters))
    found = warp(tf.constant(images), affine, fill, 33.0).numpy()
    x, y = (source.numpy() for source in apply._sources(affine, size, size, (size, size)))
    edge = (np.minimum(x, y) < 0) & (np.minimum(x, y) > -1) | (np.maximum(x, y) > size - 1) & (
        np.maximum(x, y) < size
    )
    generator = ImageDataGenerator(fill_mode=fill, cval=33.0, data_format="channels_last")
    for place in rows:
        values: dict[str, Any] = {
            name: value[place] for name, value in parameters._asdict().items() if name != "crop"
        }
        settings = values | {"tx": values["tx"] * size, "ty": values["ty"] * size}
        settings |= {"flip_horizontal": values.pop("flip"), "flip_vertical": values.pop("flip_vertical")}
        expected = generator.apply_transform(images[place].astype(np.float32), settings)
        compared = ~edge[place] if fill == "constant" else np.ones((size, size), bool)
        assert compared.mean() > 0.4
        np.testing.assert_allclose(found[place][compared], expected[compared], atol=5e-3)


def test_compiled_or_not_the_places_are_the_same() -> None:
    """A product fused with a sum in one loop but not in another could blend pixels that are no neighbours.

    Noise shows a place that is off by 1e-5 of a pixel; the blend alone differs by less than 1e-4.
    """
    images = tf.constant(np.random.default_rng(7).integers(0, 256, (16, 150, 150, 3)).astype(np.uint8))
    affine = tf.constant(draw(FAR, 3, 0, range(16), DataSpec())["affine"])
    eager = apply._warped.python_function(
        apply._packed.python_function(images), affine, "nearest", 0.0, (150, 150)
    )
    np.testing.assert_allclose(warp(images, affine), eager, atol=5e-4)


@pytest.mark.parametrize("fill", ["nearest", "reflect", "wrap", "constant"])
def test_colours_packed_into_one_number_are_those_of_each_channel(fill: str) -> None:
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
    expected = [reference(image, matrix) for image, matrix in zip(images, affine, strict=True)]
    np.testing.assert_allclose(warp(tf.constant(images), tf.constant(affine)), expected, atol=2e-3)


@pytest.mark.parametrize("size", [(4, 9), (11, 5), (5, 7)])
def test_what_comes_out_has_the_size_asked_for(size: tuple[int, int]) -> None:
    images = np.random.default_rng(9).integers(0, 256, (6, 5, 7, 3)).astype(np.uint8)
    spec = AugmentSpec(rotation=180, shift=0.3, shear=30, zoom=0.5, flip=True, crop=(0.3, 1.0), size=size)
    affine = draw(spec, 4, 0, range(6), DataSpec(image_size=(5, 7)))["affine"]
    expected = [reference(image, matrix, size) for image, matrix in zip(images, affine, strict=True)]
    np.testing.assert_allclose(warp(tf.constant(images), tf.constant(affine), size=size), expected, atol=2e-3)


@pytest.mark.parametrize("size", [(112, 112), (200, 160)])
def test_a_size_alone_is_tensorflows_resizing(size: tuple[int, int]) -> None:
    images = np.random.default_rng(10).integers(0, 256, (2, 144, 144, 3)).astype(np.uint8)
    affine = draw(AugmentSpec(size=size), 4, 0, range(2), DataSpec(image_size=(144, 144)))["affine"]
    np.testing.assert_array_equal(affine, np.float32([IDENTITY] * 2))
    np.testing.assert_allclose(
        warp(tf.constant(images), tf.constant(affine), size=size), tf.image.resize(images, size), atol=2e-2
    )


def test_a_rotation_by_right_angles_is_the_same_as_numpys() -> None:
    image = np.random.default_rng(3).integers(0, 256, (6, 6)).astype(np.uint8)
    for turns in range(4):
        nothing = affine_parameters(AugmentSpec(), uniform(0, 0, [0]), [0])
        matrices = affine_matrices(nothing._replace(theta=np.array([90.0 * turns])))
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
