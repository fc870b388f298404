"""The encodings of a shard set, pixel sums, and the check of headers only."""

from __future__ import annotations

import io

import numpy as np
import pytest
from image_samples import (
    GREY,
    RGB,
    decode_image,
    encode_image,
    insert_segment,
    make_noise,
    make_orientation,
    make_ramp,
    read_format,
)
from PIL import Image

from pipelines.shards.images import UnreadableImageError, prepare_image
from pipelines.spec import ShardSpec


def compute_sums(pixels: np.ndarray) -> list[list[int]]:
    """Computes number, sum and sum of squares of each channel, in Python's own integers."""
    height, width = pixels.shape[:2]
    rgb = np.broadcast_to(pixels.reshape(height, width, -1), (height, width, 3))
    channels = rgb.reshape(-1, 3).T.tolist()  # [H, W, 3] -> [3, H * W]
    return [[len(values), sum(values), sum(value * value for value in values)] for values in channels]


def test_pixel_sums_are_separate_for_every_channel():
    pixel_sums = prepare_image(encode_image(RGB), ShardSpec()).pixel_sums
    assert pixel_sums.dtype == np.int64
    assert pixel_sums.tolist() == compute_sums(RGB)


def test_grey_counts_in_all_channels():
    ready = prepare_image(encode_image(GREY), ShardSpec())
    assert ready.shape == (2, 2, 1)
    assert ready.pixel_sums.tolist() == compute_sums(GREY)


def test_pixel_sums_of_a_jpeg_are_those_of_its_decoded_pixels():
    image = encode_image(make_ramp(20, 24), "JPEG", quality=60)
    assert prepare_image(image, ShardSpec()).pixel_sums.tolist() == compute_sums(decode_image(image))


@pytest.mark.parametrize(
    ("height", "width", "step"),
    [
        (90, 91, 1),
        (256, 32, 1),
        (91, 91, 2),
        (513, 3, 1),
        (100, 500, 7),
        (3, 8_193, 3),
        (3, 2_731, 2),
        (2, 30_000, 2),
        (1, 9_000, 1),
    ],
)
def test_pixel_sums_of_larger_pictures_count_every_kth_row_k_times(height, width, step):
    pixels = make_noise(height, width)
    expected = np.array(compute_sums(pixels[step // 2 :: step])) * step
    assert prepare_image(encode_image(pixels), ShardSpec()).pixel_sums.tolist() == expected.tolist()


@pytest.mark.parametrize(("height", "width"), [(256, 32), (1, 60_000)])
def test_pixel_sums_are_exact_where_they_are_largest(height, width):
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[0, 7] = 254
    count = height * width
    assert (
        prepare_image(encode_image(pixels), ShardSpec()).pixel_sums.tolist()
        == [[count, 255 * count - 1, 255**2 * count - 509]] * 3
    )


def test_shape_and_pixel_sums_are_those_of_the_turned_and_scaled_image():
    ready = prepare_image(encode_image(make_ramp(40, 80), exif=make_orientation(6)), ShardSpec(store_size=20))
    pixels = decode_image(ready.image)
    assert pixels.shape == ready.shape == (40, 20, 3)
    assert ready.pixel_sums.tolist() == compute_sums(pixels)


SOURCES = {
    "jpeg": encode_image(make_ramp(40, 60), "JPEG"),
    "grey jpeg": encode_image(make_ramp(40, 60)[..., 0], "JPEG"),
    "png": encode_image(make_ramp(40, 60)),
    "grey png": encode_image(make_ramp(40, 60)[..., 1]),
    "turned jpeg": encode_image(make_ramp(60, 40), "JPEG", exif=make_orientation(6)),
    "palette": encode_image(Image.fromarray(make_ramp(40, 60)).quantize(256, dither=Image.Dither.NONE)),
}


@pytest.mark.parametrize("store_size", [None, 50, 20])
@pytest.mark.parametrize("source", SOURCES)
def test_every_encoding_stores_the_same_picture(source, store_size):
    stored = {
        name: prepare_image(SOURCES[source], ShardSpec(encoding=name, store_size=store_size))
        for name in ("raw", "png", "jpeg:90")
    }
    shape = (*((40, 60) if store_size != 20 else (20, 30)), 1 if source.startswith("grey") else 3)
    assert [ready.shape for ready in stored.values()] == [shape] * 3
    assert len({tuple(ready.pixel_sums.ravel().tolist()) for ready in stored.values()}) == 1
    pixels = np.frombuffer(stored["raw"].image, np.uint8).reshape(shape)
    assert read_format(stored["png"].image) == "PNG"
    assert np.array_equal(decode_image(stored["png"].image), pixels.squeeze())
    assert read_format(stored["jpeg:90"].image) == "JPEG"
    assert np.abs(decode_image(stored["jpeg:90"].image).astype(int) - pixels.squeeze()).mean() < 4
    found = prepare_image(SOURCES[source], ShardSpec(store_size=store_size))
    assert found.shape == shape
    assert read_format(found.image) == ("JPEG" if "jpeg" in source else "PNG")


@pytest.mark.parametrize("quality", [1, 50, 100])
def test_quality_is_that_of_libjpeg_with_chroma_at_half_resolution(quality):
    pixels = make_ramp(16, 32)
    stored = Image.open(
        io.BytesIO(prepare_image(encode_image(pixels), ShardSpec(encoding=f"jpeg:{quality}")).image)
    )
    expected = Image.open(io.BytesIO(encode_image(pixels, "JPEG", quality=quality, subsampling="4:2:0")))
    assert stored.quantization == expected.quantization
    assert [layer[1:3] for layer in stored.layer] == [(2, 2), (1, 1), (1, 1)]


HEADER = ShardSpec(check="header")


@pytest.mark.parametrize("source", ["jpeg", "grey jpeg", "png", "grey png"])
def test_checking_headers_keeps_the_same_files_as_found(source):
    whole = prepare_image(SOURCES[source], ShardSpec())
    header = prepare_image(SOURCES[source], HEADER)
    assert (header.image, header.shape, header.pixel_sums) == (SOURCES[source], whole.shape, None)


def test_checking_headers_decodes_nothing():
    cut = SOURCES["jpeg"][: SOURCES["jpeg"].index(b"\xff\xda") + 20]
    assert prepare_image(cut, HEADER).shape == (40, 60, 3)
    with pytest.raises(UnreadableImageError):
        prepare_image(cut, ShardSpec())


@pytest.mark.parametrize("check", ["header", "decode"])
def test_a_jpeg_that_ends_after_the_marker_of_its_scan_is_rejected(check):
    cut = SOURCES["jpeg"][: SOURCES["jpeg"].index(b"\xff\xda") + 2]
    with pytest.raises(UnreadableImageError):
        prepare_image(cut, ShardSpec(check=check))


@pytest.mark.parametrize(
    "image",
    [
        SOURCES["turned jpeg"],
        SOURCES["palette"],
        encode_image(RGB, exif=make_orientation(8)),
        encode_image(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"),
        encode_image(Image.fromarray(RGB), transparency=(0, 255, 0)),
        encode_image(np.array([[0, 65535]], np.uint16)),
        encode_image(RGB, "BMP"),
        encode_image(RGB, "WEBP"),
        insert_segment(SOURCES["jpeg"], 0xE2, b"MPF\0 and nothing else"),
    ],
)
def test_checking_headers_still_normalises_unusual_files(image):
    header = prepare_image(image, HEADER)
    whole = prepare_image(image, ShardSpec())
    assert header.image == whole.image != image
    assert header.shape == whole.shape
    assert header.pixel_sums is None


def test_a_store_size_is_applied_with_any_check():
    image = encode_image(make_noise(40, 60), "JPEG")
    assert (
        prepare_image(image, ShardSpec(check="header", store_size=20)).image
        == prepare_image(image, ShardSpec(store_size=20)).image
    )
