"""Thumbnails and hashes: equal for copies and mirror images, whatever decodes them."""

from __future__ import annotations

import numpy as np
import pytest
from shard_samples import encode_png

from pipelines.health import thumbnails
from pipelines.health.thumbnails import SIDE, compute_hashes, compute_thumbnail, mirror_hashes, normalize
from pipelines.shards.codec import encode_jpeg


def draw_picture(seed: int, height: int = 203, width: int = 301) -> np.ndarray:
    """Draws coarse random blocks, smoothly enlarged, so that a JPEG of them is close to the original."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return np.asarray(thumbnails.Image.fromarray(coarse).resize((width, height)))


def hash_image(image: bytes, shape: tuple[int, int, int], encoding: str = "as-found") -> np.ndarray:
    thumbnail = compute_thumbnail(image, shape, encoding, channels=1)
    return compute_hashes(thumbnail[None, ..., 0].astype(np.float32))


@pytest.mark.parametrize("shape", [(203, 301), (32, 32), (33, 900), (28, 28), (5, 3)])
def test_all_encodings_have_nearly_the_same_thumbnail(shape: tuple[int, int]) -> None:
    pixels = draw_picture(0, *shape)
    raw = compute_thumbnail(pixels.tobytes(), pixels.shape, "raw", channels=3).astype(int)
    png = compute_thumbnail(encode_png(pixels), pixels.shape, "as-found", channels=3)
    jpeg = compute_thumbnail(encode_jpeg(pixels, 95, "444"), pixels.shape, "as-found", channels=3)
    assert raw.shape == (SIDE, SIDE, 3)
    assert np.array_equal(raw, png)
    # The smallest picture is all noise to a JPEG.
    assert np.abs(raw - jpeg).mean() < (2.5 if min(shape) > 8 else 8)


def test_grey_and_colour_thumbnails_agree() -> None:
    pixels = draw_picture(1)
    image = encode_jpeg(pixels, 95, "420")
    grey = compute_thumbnail(image, pixels.shape, "as-found", channels=1)
    colour = compute_thumbnail(image, pixels.shape, "as-found", channels=3)
    assert grey.shape == (SIDE, SIDE, 1)
    assert np.abs(thumbnails.convert_to_grey(colour[None])[0] - grey[..., 0]).max() < 3
    one_channel = pixels[..., :1]
    repeated = compute_thumbnail(one_channel.tobytes(), one_channel.shape, "raw", channels=3)
    assert np.array_equal(repeated[..., 0], repeated[..., 2])


@pytest.mark.parametrize("width", [301, 304, 296, 64])
def test_the_hash_of_the_mirror_image_is_known(width: int) -> None:
    """Also for widths that are not multiples of 8, which a reduced JPEG rounds up on the right side."""
    pixels = draw_picture(2, 203, width)
    image = encode_jpeg(pixels, 95, "444")
    mirrored = encode_jpeg(np.ascontiguousarray(pixels[:, ::-1]), 95, "444")
    expected = mirror_hashes(hash_image(image, pixels.shape))
    assert np.bitwise_count(hash_image(mirrored, pixels.shape) ^ expected)[0] <= 3
    assert np.bitwise_count(hash_image(image, pixels.shape) ^ expected)[0] > 16


def test_a_hash_consists_of_the_signs_of_the_lowest_frequencies() -> None:
    """One cosine of the given frequency has one coefficient, by the orthogonality of the DCT."""
    position = (np.arange(SIDE) + 0.5) * np.pi / SIDE
    for bit, frequency in enumerate(zip(thumbnails.VERTICAL, thumbnails.HORIZONTAL, strict=True)):
        vertical, horizontal = (np.cos(number * position) for number in frequency)
        picture = np.outer(vertical, horizontal).astype(np.float32)
        hashes = compute_hashes(np.stack([picture, -picture]))
        assert [int(number) >> bit & 1 for number in hashes] == [1, 0]
    total = thumbnails.VERTICAL + thumbnails.HORIZONTAL
    assert total.min() == 1
    assert (np.diff(total) >= 0).all()


def test_correlation_ignores_brightness_and_contrast() -> None:
    grey = draw_picture(3)[:SIDE, :SIDE, 0].astype(np.float32)
    one, other = normalize(np.stack([grey, 0.5 * grey + 40]))
    assert one @ other == pytest.approx(1, abs=1e-5)
    assert np.array_equal(normalize(np.full((1, SIDE, SIDE), 7, np.float32)), np.zeros((1, SIDE * SIDE)))


@pytest.mark.parametrize("image", [b"", b"\xff\xd8 no JPEG", b"text"])
def test_damaged_images_are_a_value_error(image: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        compute_thumbnail(image, (4, 4, 3), "as-found", channels=1)
