from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipelines.shards import images
from pipelines.shards.images import UnreadableImageError, prepare

RGB = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]], [[7, 7, 7], [200, 100, 50]]], np.uint8)  # 3 x 2
GREY = np.array([[0, 50], [100, 255]], np.uint8)


def encode(pixels: np.ndarray | Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(file, form, **options)
    return file.getvalue()


def decode(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)))


def form(image: bytes) -> str:
    return str(Image.open(io.BytesIO(image)).format)


def smooth(height: int, width: int) -> np.ndarray:
    """A ramp to the right in red and downwards in green, which JPEG keeps almost exactly."""
    down, right = np.mgrid[:height, :width]
    return np.stack([right * 255 // (width - 1), down * 255 // (height - 1), np.full_like(down, 90)], -1).astype(np.uint8)


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[images.ORIENTATION] = value
    return exif


@pytest.mark.parametrize(
    "image",
    [
        encode(smooth(16, 24), "JPEG", quality=60),
        encode(smooth(16, 24), "JPEG", quality=90, progressive=True, exif=orientation(1)),
        encode(GREY, "JPEG"),
        encode(RGB),
        encode(GREY),
    ],
    ids=["jpeg", "progressive", "grey jpeg", "png", "grey png"],
)
def test_plain_files_keep_their_bytes(image):
    assert prepare(image, None).image == image
    assert prepare(image, 16).image == image


def test_histogram_counts_every_channel_apart():
    counts = prepare(encode(RGB), None).histogram
    expected = np.stack([np.bincount(RGB[..., channel].ravel(), minlength=256) for channel in range(3)])
    assert counts.dtype == np.int64
    assert np.array_equal(counts, expected)


def test_grey_counts_in_all_channels():
    assert np.array_equal(prepare(encode(GREY), None).histogram, np.tile(np.bincount(GREY.ravel(), minlength=256), (3, 1)))


def with_alpha(alpha: int) -> np.ndarray:
    return np.concatenate([RGB, np.full((3, 2, 1), alpha, np.uint8)], -1)


def test_transparency_shows_white():
    assert np.array_equal(decode(prepare(encode(with_alpha(0)), None).image), np.full((3, 2, 3), 255, np.uint8))
    assert np.array_equal(decode(prepare(encode(with_alpha(255)), None).image), RGB)
    half = decode(prepare(encode(with_alpha(51)), None).image).astype(int)  # a fifth of the colour, four fifths of white
    assert np.abs(half - (RGB / 5 + 204)).max() <= 1


def test_a_transparent_colour_shows_white():
    image = prepare(encode(Image.fromarray(RGB), transparency=(0, 255, 0)), None).image
    expected = RGB.copy()
    expected[0, 1] = 255
    assert np.array_equal(decode(image), expected)
    assert "transparency" not in Image.open(io.BytesIO(image)).info


def test_16_bits_keep_the_upper_8():
    image = prepare(encode(np.array([[0, 255, 256], [0x1234, 0xFEFF, 0xFFFF]], np.uint16)), None).image
    assert decode(image).tolist() == [[0, 0, 1], [0x12, 0xFE, 0xFF]]
    assert image[24:26] == b"\x08\x00"


def test_16_bit_rgb_becomes_8_bit():
    pixels = np.array([[[0x1234, 0xFEFF, 0x00FF]]], ">u2")
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    image = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + pixels.tobytes())) + chunk(b"IEND", b"")
    stored = prepare(image, None).image
    assert decode(stored).tolist() == [[[0x12, 0xFE, 0x00]]]
    assert stored[24:26] == b"\x08\x02"


def test_palettes_and_single_bits_are_expanded():
    palette = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE, colors=6)
    assert np.array_equal(decode(prepare(encode(palette), None).image), RGB)
    bits = prepare(encode(Image.fromarray(np.array([[True, False]]))), None).image
    assert decode(bits).tolist() == [[255, 0]]
    assert bits[24:26] == b"\x08\x00"


@pytest.mark.parametrize("source", ["BMP", "GIF", "WEBP"])
def test_other_formats_become_png(source):
    options = {"lossless": True} if source == "WEBP" else {}
    picture = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE, colors=6) if source == "GIF" else RGB
    image = prepare(encode(picture, source, **options), None).image
    assert form(image) == "PNG"
    assert np.array_equal(decode(image), RGB)


@pytest.mark.parametrize("source", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation(source):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if source == "WEBP" else {}
    image = prepare(encode(frames[0], source, save_all=True, append_images=frames[1:], **options), None).image
    assert np.array_equal(decode(image), np.full((4, 4, 3), (255, 0, 0), np.uint8))
    assert b"acTL" not in image


def test_the_first_of_several_jpegs_in_one_file():
    image = encode(Image.new("RGB", (8, 8), (255, 0, 0)), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8), (0, 0, 255))])
    assert Image.open(io.BytesIO(image)).format == "MPO"
    stored = prepare(image, None).image
    assert form(stored) == "JPEG"
    assert np.abs(decode(stored).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize(("value", "steps"), [(3, "rot180"), (6, "right"), (8, "left"), (2, "mirror")])
def test_exif_turns_the_pixels(value, steps):
    turned = {"rot180": np.rot90(RGB, 2), "right": np.rot90(RGB, -1), "left": np.rot90(RGB), "mirror": RGB[:, ::-1]}[steps]
    image = prepare(encode(RGB, exif=orientation(value)), None).image
    assert np.array_equal(decode(image), turned)
    assert not Image.open(io.BytesIO(image)).getexif()


def test_a_turned_jpeg_stays_a_jpeg_without_chroma_subsampling():
    pixels = smooth(16, 24)
    image = prepare(encode(pixels, "JPEG", quality=95, exif=orientation(6)), None).image
    stored = Image.open(io.BytesIO(image))
    assert stored.format == "JPEG"
    assert [layer[1:3] for layer in stored.layer] == [(1, 1)] * 3
    assert np.abs(np.asarray(stored).astype(int) - np.rot90(pixels, -1)).mean() < 3


def test_cmyk_becomes_rgb():
    image = prepare(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95), None).image
    assert form(image) == "JPEG"
    assert np.abs(decode(image).astype(int) - (255, 0, 0)).max() <= 3


def test_metadata_does_not_outlive_a_rewrite():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert b"iCCP" not in prepare(encode(smooth(8, 8), icc_profile=profile), 4).image


@pytest.mark.parametrize(
    ("size", "store_size", "expected"), [((40, 60), 20, (20, 30)), ((60, 41), 20, (29, 20)), ((20, 60), 20, (20, 60)), ((8, 9), 20, (8, 9))]
)
def test_the_shorter_side_is_limited(size, store_size, expected):
    assert decode(prepare(encode(smooth(*size)), store_size).image).shape[:2] == expected


def test_scaling_is_antialiased():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    assert set(decode(prepare(encode(checks.astype(np.uint8)), 16).image)[2:-2, 2:-2].ravel().tolist()) <= {127, 128}


def test_scaling_happens_after_the_turn_and_keeps_the_histogram_in_step():
    ready = prepare(encode(smooth(40, 80), exif=orientation(6)), 20)
    pixels = decode(ready.image)
    assert pixels.shape == (40, 20, 3)
    assert np.array_equal(ready.histogram[0], np.bincount(pixels[..., 0].ravel(), minlength=256))


PHOTO = encode(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8), "JPEG")
CHUNKS = encode(RGB)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "empty file"),
        (b"these are words", "not a JPEG, PNG, BMP, GIF or WebP"),
        (PHOTO[: len(PHOTO) // 2], "truncated"),
        (PHOTO[:100], "runcated|header"),
        (CHUNKS[: len(CHUNKS) // 2], "truncated"),
        (CHUNKS[:-1], "truncated PNG"),
        (CHUNKS[:-12], "truncated PNG"),
        (CHUNKS[:-5] + bytes([CHUNKS[-5] ^ 1]) + CHUNKS[-4:], "damaged PNG|truncated PNG"),
        (encode(RGB, "TIFF"), "not a JPEG"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(image, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        prepare(image, None)


def test_a_wrong_checksum_is_refused():
    at = CHUNKS.index(b"IDAT") + 4 + struct.unpack(">I", CHUNKS[CHUNKS.index(b"IDAT") - 4 : CHUNKS.index(b"IDAT")])[0]
    with pytest.raises(UnreadableImageError, match="damaged"):
        prepare(CHUNKS[:at] + bytes([CHUNKS[at] ^ 255]) + CHUNKS[at + 1 :], None)


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    for side in (10_000, 60_000):  # Pillow only warns of the first
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        with pytest.raises(UnreadableImageError, match="more than 89478485 pixels"):
            prepare(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""), None)


@pytest.mark.parametrize("source", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_damage_is_either_survived_or_refused(source):
    image = encode(RGB, source)
    for seed in range(150):
        draws = np.random.default_rng(seed)
        broken = bytearray(image)
        broken[draws.integers(len(image))] = draws.integers(256)
        try:
            ready = prepare(bytes(broken[: draws.integers(len(image) // 2, len(image) + 1)]), 2)
        except UnreadableImageError:
            continue
        assert min(decode(ready.image).shape[:2]) >= 1
