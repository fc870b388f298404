"""Decoding and resizing, pixel by pixel."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import tensorflow as tf
from PIL import Image
from shard_samples import encode_png
from tiny_shards import solid

from pipelines.input import tfdata
from pipelines.input.tfdata import decode
from pipelines.spec import DataSpec


def decode_pixels(image: bytes, size: tuple[int, int], channels: int = 3) -> np.ndarray:
    return decode(tf.constant(image), DataSpec(image_size=size, channels=channels)).numpy()


def make_shapes(images: Sequence[bytes]) -> np.ndarray:
    """Returns any shapes: only raw pixels and the fast decoder depend on them."""
    return np.zeros((len(images), 3), np.int32)


def decode_all(images: Sequence[bytes], data: DataSpec) -> np.ndarray:
    return tfdata.decode_all(images, make_shapes(images), data, "as-found")


def find_undecodable(images: Sequence[bytes], data: DataSpec) -> int | None:
    return tfdata.find_undecodable(images, make_shapes(images), data, "as-found")


def encode_jpeg(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


TRUNCATED = encode_jpeg(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))[:-20]


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)


def test_png_is_decoded_exactly(noise: np.ndarray) -> None:
    decoded = decode_pixels(encode_png(noise), (16, 24))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, noise)


def decode_fitted(
    image: bytes, shape: tuple[int, ...], data: DataSpec, encoding: str = "as-found"
) -> np.ndarray:
    return tfdata.decode_all([image], np.array([shape], np.int32), data, encoding)[0]


@pytest.mark.parametrize("kind", ["jpeg", "png", "raw"])
def test_a_crop_is_that_part_of_the_whole_image(noise: np.ndarray, kind: str) -> None:
    stored = {"jpeg": encode_jpeg(noise), "png": encode_png(noise), "raw": noise.tobytes()}[kind]
    encoding = "raw" if kind == "raw" else "as-found"
    whole = decode_fitted(stored, noise.shape, DataSpec(image_size=(16, 24)), encoding)
    part = decode_fitted(stored, noise.shape, DataSpec(image_size=(16, 16), fit="crop"), encoding)
    np.testing.assert_array_equal(part, whole[:, 4:20])
    inner = decode_fitted(stored, noise.shape, DataSpec(image_size=(8, 8), fit="crop", resize=16), encoding)
    np.testing.assert_array_equal(inner, whole[4:12, 8:16])


WINDOW = np.array([[3, 5, 8, 8]], np.int32)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(8, 8), (16, 24)])
@pytest.mark.parametrize("kind", ["jpeg", "png", "raw"])
def test_a_given_window_becomes_the_whole_result(noise: np.ndarray, kind: str, size: Any, fit: str) -> None:
    stored = {"jpeg": encode_jpeg(noise), "png": encode_png(noise), "raw": noise.tobytes()}[kind]
    encoding = "raw" if kind == "raw" else "as-found"
    whole = decode_fitted(stored, noise.shape, DataSpec(image_size=(16, 24)), encoding)
    data = DataSpec(image_size=size, fit=fit)
    (part,) = tfdata.decode_all([stored], np.int32([noise.shape]), data, encoding, WINDOW)
    expected = decode_pixels(encode_png(whole[3:11, 5:13]), size)
    np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("ratio", range(4))
def test_a_window_at_a_fraction_of_the_size_is_that_part_of_the_whole(ratio: int) -> None:
    photo = np.random.default_rng(1).integers(0, 256, (12, 16, 3), np.uint8)
    stored = encode_jpeg(np.asarray(Image.fromarray(photo).resize((159, 121))))
    divisor = tfdata.RATIOS[ratio]
    top, left, height, width = np.int32([33, 50, 64, 80]) // divisor
    whole = tf.io.decode_jpeg(stored, 3, ratio=divisor, dct_method="INTEGER_ACCURATE").numpy()
    window = tf.constant([33, 50, 64, 80])
    target = tf.constant([0, 0, height, width])
    data = DataSpec(image_size=(int(height), int(width)), fit="crop")
    part = decode(tf.constant(stored), data, tfdata.Placement(window, target), tf.constant(ratio)).numpy()
    np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


def test_an_image_is_padded_with_black_on_both_sides(noise: np.ndarray) -> None:
    stored = encode_png(noise)
    whole = decode_fitted(stored, noise.shape, DataSpec(image_size=(16, 24)))
    padded = decode_fitted(stored, noise.shape, DataSpec(image_size=(24, 24), fit="pad"))
    np.testing.assert_array_equal(padded[4:20], whole)
    assert not padded[:4].any()
    assert not padded[20:].any()


def test_antialiasing_averages_all_pixels() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::4] = 255
    data = DataSpec(image_size=(8, 8), antialias=True)
    smooth = decode_fitted(encode_png(stripes), stripes.shape, data)
    assert np.abs(smooth[:, 1:-1].astype(int) - 64).max() <= 3  # a quarter of the pixels is white
    plain = decode_fitted(encode_png(stripes), stripes.shape, DataSpec(image_size=(8, 8)))
    assert np.abs(plain.astype(int) - 64).min() >= 60  # two neighbours decide: 0 or 128


def test_the_fast_decoder_crops_the_same_part() -> None:
    ramp = np.tile(np.linspace(0, 255, 256, dtype=np.uint8)[None, :, None], (128, 1, 3))
    stored = encode_jpeg(ramp)
    exact = decode_fitted(stored, ramp.shape, DataSpec(image_size=16, fit="crop"))
    fast = decode_fitted(stored, ramp.shape, DataSpec(image_size=16, fit="crop", decode="fast"))
    assert (
        np.abs(exact.astype(int) - fast).max() <= 8
    )  # an eighth of the size: half a pixel of it is 4 levels


def test_jpeg_is_decoded_accurately(noise: np.ndarray) -> None:
    """Pillow uses the accurate DCT; TensorFlow's default is up to 5 levels off on these pixels."""
    image = encode_jpeg(noise)
    np.testing.assert_array_equal(decode_pixels(image, (16, 24)), np.asarray(Image.open(io.BytesIO(image))))


def test_jpeg_is_converted_to_grey_as_the_decoder_does_it(noise: np.ndarray) -> None:
    image = encode_jpeg(noise)
    stored = Image.open(io.BytesIO(image))
    stored.draft("L", stored.size)  # the luma channel itself, not computed from RGB
    np.testing.assert_array_equal(decode_pixels(image, (16, 24), channels=1)[..., 0], np.asarray(stored))


def test_grey_png_to_three_channels_and_colour_png_to_one() -> None:
    assert decode_pixels(encode_png(np.uint8([[1, 200]])), (1, 2)).tolist() == [[[1, 1, 1], [200, 200, 200]]]
    colours = encode_png(np.uint8([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]]))
    assert decode_pixels(colours, (1, 4), channels=1).ravel().tolist() == [76, 149, 29, 255]


def test_resizing_up_uses_half_pixel_centres_and_rounds() -> None:
    # 25.25 and 75.75 between the two: truncation would give 75, corner-aligned sampling 0, 34, 67, 101
    assert decode_pixels(encode_png(np.uint8([[0, 101]])), (1, 4), channels=1).ravel().tolist() == [
        0,
        25,
        76,
        101,
    ]
    assert decode_pixels(encode_png(np.uint8([[0], [101]])), (4, 1), channels=1).ravel().tolist() == [
        0,
        25,
        76,
        101,
    ]


def test_resizing_down_does_not_antialias() -> None:
    # the middle pixel of each half; antialiasing would blend its neighbours in
    assert decode_pixels(
        encode_png(np.uint8([[90, 10, 250, 30, 200, 60]])), (1, 2), channels=1
    ).ravel().tolist() == [
        10,
        200,
    ]


def test_height_comes_before_width() -> None:
    assert decode_pixels(solid(9, (4, 6)), (2, 3)).shape == (2, 3, 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (37, 53), (160, 90)])
@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": "4:1:1"}, {"grey": True}],
)
def test_jpegs_of_any_kind_are_decoded_as_by_libjpeg_turbo(
    shape: tuple[int, int], channels: int, options: dict[str, Any]
) -> None:
    """Decoded to the last bit, and resized as `tf.image.resize` does it."""
    noise = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    is_grey = "grey" in options
    settings = {} if is_grey else options
    image = encode_jpeg(noise[..., 0] if is_grey else noise, **settings)
    expected = simplejpeg.decode_jpeg(image, "RGB" if channels == 3 else "GRAY")
    np.testing.assert_array_equal(decode_pixels(image, shape, channels), expected)
    resized = tf.cast(tf.image.resize(expected, (31, 44), antialias=False) + 0.5, tf.uint8)
    np.testing.assert_array_equal(decode_pixels(image, (31, 44), channels), resized)


def test_batches_of_any_size_have_static_shapes() -> None:
    data = DataSpec(image_size=(5, 7))
    for size in (3, 4, 5):
        record = {
            "encoded": [solid(value) for value in range(size)],
            "shape": np.zeros((size, 3), np.int32),
            "row": np.arange(size),
        }
        signature = {"row": tf.TensorSpec((size,), tf.int64)}
        dataset = tfdata.decode_batches(lambda record=record: iter([record]), signature, data, "as-found", 1)
        assert dataset.element_spec["image"].shape == (size, 5, 7, 3)
        (batch,) = dataset
        np.testing.assert_array_equal(batch["image"][:, 1, 2, 0], range(size))


def test_real_photos_decode_as_pillow_decodes_them(shared: Path) -> None:
    for path in sorted((shared / "data" / "samples").glob("dog.150?.jpg"))[:4]:
        photo = Image.open(path)
        np.testing.assert_array_equal(
            decode_pixels(path.read_bytes(), (photo.height, photo.width)), np.asarray(photo)
        )


def test_many_images_are_decoded_in_order() -> None:
    decoded = decode_all([solid(value) for value in range(50)], DataSpec(image_size=(2, 3), channels=1))
    assert decoded.dtype == np.uint8
    assert decoded.shape == (50, 2, 3, 1)
    assert (decoded == np.arange(50)[:, None, None, None]).all()


def test_no_images_give_no_images() -> None:
    assert decode_all([], DataSpec(image_size=(2, 3))).shape == (0, 2, 3, 3)


@pytest.mark.parametrize(
    "broken",
    [b"", b"junk", solid(7)[:-20], b"\xff\xd8\xff\xe0 no jpeg", b"BM no bitmap", b"GIF89a no gif", TRUNCATED],
)
def test_the_first_broken_image_is_found(broken: bytes) -> None:
    data = DataSpec(image_size=(2, 3))
    good = [solid(value) for value in range(20)]
    assert find_undecodable(good, data) is None
    assert find_undecodable([*good, broken, *good, broken], data) == 20
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_all([*good, broken], data)


@pytest.mark.parametrize(("stored", "channels"), [(3, 3), (1, 3), (3, 1), (1, 1)])
@pytest.mark.parametrize("size", [(16, 24), (7, 30)])
def test_raw_pixels_equal_a_png_of_them(
    noise: np.ndarray, stored: int, channels: int, size: tuple[int, int]
) -> None:
    array = noise[..., :stored]
    found = tfdata.decode_raw(
        tf.constant(array.tobytes()), tf.constant(array.shape), DataSpec(image_size=size, channels=channels)
    ).numpy()
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, decode_pixels(encode_png(array), size, channels))


def test_raw_pixels_are_converted_to_grey_as_the_decoder_does_it() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    colours = np.random.default_rng(1).integers(0, 256, (200, 300, 3), np.uint8)
    for array in (levels, np.repeat(levels, 3, axis=2), colours):
        data = DataSpec(image_size=array.shape[:2], channels=1)
        found = tfdata.decode_raw(tf.constant(array.tobytes()), tf.constant(array.shape), data)
        np.testing.assert_array_equal(found, decode_pixels(encode_png(array), array.shape[:2], 1))


def test_raw_pixels_that_do_not_match_their_shape_are_refused(noise: np.ndarray) -> None:
    images = [noise.tobytes(), noise.tobytes()[:-1]]
    assert tfdata.find_undecodable(images, np.array([noise.shape] * 2), DataSpec(), "raw") == 1
    with pytest.raises(tf.errors.InvalidArgumentError):
        tfdata.decode_all(images, np.array([noise.shape] * 2), DataSpec(), "raw")


@pytest.mark.parametrize(
    ("shape", "ratio"),
    [
        ((300, 400), 1),
        ((299, 400), 1),  # half of it, rounded up, is still 150
        ((298, 400), 0),
        ((400, 298), 0),
        ((600, 600), 2),
        ((596, 600), 1),
        ((1200, 1193), 3),
        ((9000, 9000), 3),
        ((100, 100), 0),
    ],
)
def test_the_fast_decoder_keeps_at_least_the_requested_size(shape: tuple[int, int], ratio: int) -> None:
    dimensions = tf.constant([*shape, 3])
    assert int(tfdata.choose_ratio(tf.constant(b"\xff\xd8\xff..."), dimensions, DataSpec())) == ratio
    assert int(tfdata.choose_ratio(tf.constant(b"\x89PNG..."), dimensions, DataSpec())) == 0


def test_the_fast_decoder_takes_every_ratio_and_png() -> None:
    """A smooth picture is nearly the same at every ratio; a wrong branch would give another size or black."""
    y, x = np.mgrid[0:160, 0:160]
    smooth = np.stack([y, x, 255 - y], axis=2).astype(np.uint8)
    enlarged = [np.kron(smooth, np.ones((k, k, 1), np.uint8)) for k in (1, 2, 4)]
    images = [*(encode_jpeg(array) for array in enlarged), encode_png(smooth)]
    shapes = np.array([(160 * k, 160 * k, 3) for k in (1, 2, 4, 1)])
    exact, fast = (
        tfdata.decode_all(images, shapes, DataSpec(decode=decode), "as-found").astype(int)
        for decode in ("exact", "fast")
    )
    np.testing.assert_array_equal(fast[[0, 3]], exact[[0, 3]])
    assert 0 < np.abs(fast - exact)[1:3].mean() < 1


def test_real_photos_decoded_fast_are_close(shared: Path) -> None:
    """Of 300 photos, those that change do so by 3.7 levels on average, at most 16: they alias less."""
    photos = [path.read_bytes() for path in sorted((shared / "data" / "samples").glob("dog.150?.jpg"))]
    shapes = np.array([(*np.asarray(Image.open(io.BytesIO(photo))).shape[:2], 3) for photo in photos])
    exact, fast = (
        tfdata.decode_all(photos, shapes, DataSpec(decode=decode), "as-found").astype(float)
        for decode in ("exact", "fast")
    )
    difference = np.abs(exact - fast).mean(axis=(1, 2, 3))
    is_halved = (shapes[:, :2] >= 299).all(axis=1)
    assert is_halved.any()
    assert (difference[~is_halved] == 0).all()
    assert (difference[is_halved] > 0).all()
    assert difference.mean() < 8
