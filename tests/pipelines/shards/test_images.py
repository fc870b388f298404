"""Which images are stored as found, and how all others are normalized."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import simplejpeg
from image_samples import (
    GREY,
    RGB,
    build_png,
    decode_image,
    encode_image,
    insert_segment,
    make_orientation,
    make_ramp,
    patch_bytes,
    read_format,
)
from PIL import Image, ImageCms

from pipelines.shards import images
from pipelines.shards.images import UnreadableImageError, prepare_image
from pipelines.spec import ShardSpec


@pytest.mark.parametrize(
    "image",
    [
        encode_image(make_ramp(16, 24), "JPEG", quality=60),
        encode_image(make_ramp(16, 24), "JPEG", quality=90, progressive=True, exif=make_orientation(1)),
        encode_image(GREY, "JPEG"),
        encode_image(RGB),
        encode_image(GREY),
    ],
    ids=["jpeg", "progressive", "grey jpeg", "png", "grey png"],
)
def test_plain_files_keep_their_bytes(image):
    assert prepare_image(image, ShardSpec()).image == image
    assert prepare_image(image, ShardSpec(store_size=16)).image == image


def add_alpha(alpha: int) -> np.ndarray:
    return np.concatenate([RGB, np.full((3, 2, 1), alpha, np.uint8)], -1)


def test_transparency_is_blended_with_white():
    assert np.array_equal(decode_image(prepare_image(encode_image(add_alpha(255)), ShardSpec()).image), RGB)
    partly = add_alpha(255)
    partly[0, 0, 3] = 0
    assert decode_image(prepare_image(encode_image(partly), ShardSpec()).image)[0, 0].tolist() == [255] * 3
    fifth = decode_image(prepare_image(encode_image(add_alpha(51)), ShardSpec()).image).astype(int)
    assert np.abs(fifth - (RGB / 5 + 255 * 4 / 5)).max() <= 1


def build_bitmap_v4(pixels):
    """Builds a 32-bit BMP with a V4 header, whose alpha mask is set and whose alpha is zero."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, width, 4), np.uint8)
    rows[..., :3] = pixels[::-1, :, ::-1]
    header = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, rows.nbytes, 2835, 2835, 0, 0)
    header += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(108 - len(header) - 16)
    start = 14 + len(header)
    return struct.pack("<2sIHHI", b"BM", start + rows.nbytes, 0, 0, start) + header + rows.tobytes()


@pytest.mark.parametrize("image", [encode_image(add_alpha(0)), build_bitmap_v4(RGB)], ids=["png", "bmp v4"])
def test_an_alpha_channel_that_is_zero_everywhere_is_no_alpha(image):
    prepared = prepare_image(image, ShardSpec())
    assert np.array_equal(decode_image(prepared.image), RGB)
    assert prepared.notices == (images.IGNORED_ALPHA,)


def test_a_transparent_colour_becomes_white():
    image = prepare_image(encode_image(Image.fromarray(RGB), transparency=(0, 255, 0)), ShardSpec()).image
    expected = RGB.copy()
    expected[0, 1] = 255
    assert np.array_equal(decode_image(image), expected)
    assert "transparency" not in Image.open(io.BytesIO(image)).info


def test_16_bit_values_keep_their_upper_8_bits():
    image = prepare_image(
        encode_image(np.array([[0, 255, 256], [0x1234, 0xFEFF, 0xFFFF]], np.uint16)), ShardSpec()
    ).image
    assert decode_image(image).tolist() == [[0, 0, 1], [0x12, 0xFE, 0xFF]]
    assert image[24:26] == b"\x08\x00"


def test_12_bit_values_in_16_bits_are_noticed_and_scaled_by_levels():
    values = np.array([[0, 16], [2047, 4095]], np.uint16)
    image = encode_image(values)
    dark = prepare_image(image, ShardSpec())
    assert (decode_image(dark.image).tolist(), dark.notices) == (
        [[0, 0], [7, 15]],
        (images.DEEP, images.DARK),
    )
    scaled = prepare_image(image, ShardSpec(levels="0:4095"))
    assert decode_image(scaled.image).tolist() == [[0, 1], [127, 255]]
    assert scaled.notices == (images.DEEP,)
    clipped = prepare_image(image, ShardSpec(levels="16:2064"))
    assert decode_image(clipped.image).tolist() == [[0, 0], [253, 255]]
    assert clipped.notices == (images.DEEP, images.CLIPPED)


def test_levels_use_all_16_bits_of_colours():
    image = build_png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 1, 4095, 300, 16, 2047, 0))
    assert prepare_image(image, ShardSpec()).notices == (images.DEEP, images.DARK)
    prepared = prepare_image(image, ShardSpec(levels="0:4095"))
    assert decode_image(prepared.image).tolist() == [[[0, 255, 19], [1, 127, 0]]]
    assert prepared.notices == (images.DEEP,)
    opaque = build_png(1, 1, 16, 6, b"\0" + struct.pack(">4H", 1, 4095, 300, 65535))
    assert decode_image(prepare_image(opaque, ShardSpec(levels="0:4095")).image).tolist() == [[[0, 255, 19]]]
    grey = build_png(1, 1, 16, 4, b"\0" + struct.pack(">2H", 300, 65535))
    with pytest.raises(UnreadableImageError, match="greyscale with alpha"):
        prepare_image(grey, ShardSpec(levels="0:4095"))


@pytest.mark.parametrize(
    ("image", "maximum"),
    [
        (encode_image(np.array([[3, 999]], np.uint16)), 999),
        (build_png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 1, 4095, 300)), 4095),
        (encode_image(RGB), None),
        (b"text", None),
        (encode_image(np.array([[3, 999]], np.uint16))[:40], None),
    ],
)
def test_the_largest_value_of_a_deep_image(image, maximum):
    assert images.find_deep_maximum(image) == maximum


def test_16_bit_rgb_becomes_8_bit():
    image = build_png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 0x1234, 0xFEFF, 0x00FF))
    stored = prepare_image(image, ShardSpec()).image
    assert decode_image(stored).tolist() == [[[0x12, 0xFE, 0x00]]]
    assert stored[24:26] == b"\x08\x02"


def test_a_transparent_colour_of_another_depth_becomes_white():
    wide = build_png(
        2,
        1,
        16,
        2,
        b"\0" + struct.pack(">6H", 0x1234, 0xFEFF, 0x00FF, 0x1300, 0xFEFF, 0x00FF),
        (b"tRNS", struct.pack(">3H", 0x1234, 0xFEFF, 255)),
    )
    assert decode_image(prepare_image(wide, ShardSpec()).image).tolist() == [
        [[255, 255, 255], [0x13, 0xFE, 0]]
    ]
    grey = build_png(
        2, 1, 16, 0, b"\0" + struct.pack(">2H", 0x1234, 0x1300), (b"tRNS", struct.pack(">H", 0x1234))
    )
    assert decode_image(prepare_image(grey, ShardSpec()).image).tolist() == [
        [[255, 255, 255], [0x13, 0x13, 0x13]]
    ]
    narrow = build_png(2, 1, 4, 0, b"\0\x3a", (b"tRNS", struct.pack(">H", 3)))
    assert decode_image(prepare_image(narrow, ShardSpec()).image).tolist() == [
        [[255, 255, 255], [170, 170, 170]]
    ]
    palette = build_png(2, 1, 2, 3, b"\0\x10", (b"PLTE", bytes(range(9))), (b"tRNS", b"\xff\x00"))
    assert decode_image(prepare_image(palette, ShardSpec()).image).tolist() == [[[0, 1, 2], [255, 255, 255]]]
    bits = build_png(2, 1, 1, 0, b"\0\x40", (b"tRNS", struct.pack(">H", 1)))
    assert decode_image(prepare_image(bits, ShardSpec()).image).tolist() == [[[0, 0, 0], [255, 255, 255]]]
    bits = build_png(2, 1, 1, 0, b"\0\x40", (b"tRNS", struct.pack(">H", 0)))
    assert decode_image(prepare_image(bits, ShardSpec()).image).tolist() == [
        [[255, 255, 255], [255, 255, 255]]
    ]


def test_palettes_and_single_bits_are_expanded():
    palette = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE, colors=6)
    assert np.array_equal(decode_image(prepare_image(encode_image(palette), ShardSpec()).image), RGB)
    bits = prepare_image(encode_image(Image.fromarray(np.array([[True, False]]))), ShardSpec()).image
    assert decode_image(bits).tolist() == [[255, 0]]
    assert bits[24:26] == b"\x08\x00"


@pytest.mark.parametrize("source", ["BMP", "GIF", "WEBP"])
def test_other_formats_become_png(source):
    options = {"lossless": True} if source == "WEBP" else {}
    picture = (
        Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE, colors=6)
        if source == "GIF"
        else RGB
    )
    image = prepare_image(encode_image(picture, source, **options), ShardSpec()).image
    assert read_format(image) == "PNG"
    assert np.array_equal(decode_image(image), RGB)


@pytest.mark.parametrize("source", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_reduced_to_its_first_frame(source):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if source == "WEBP" else {}
    image = prepare_image(
        encode_image(frames[0], source, save_all=True, append_images=frames[1:], **options), ShardSpec()
    )
    assert image.notices == (f"first frame used ({source})",)
    image = image.image
    assert prepare_image(encode_image(frames[0], source, **options), ShardSpec()).notices == ()
    assert np.array_equal(decode_image(image), np.full((4, 4, 3), (255, 0, 0), np.uint8))
    assert b"acTL" not in image


def test_several_jpegs_in_one_file_are_reduced_to_the_first():
    image = encode_image(
        Image.new("RGB", (8, 8), (255, 0, 0)),
        "MPO",
        save_all=True,
        append_images=[Image.new("RGB", (8, 8), (0, 0, 255))],
    )
    assert Image.open(io.BytesIO(image)).format == "MPO"
    prepared = prepare_image(image, ShardSpec())
    assert prepared.notices == ("first frame used (MPO)",)
    assert read_format(prepared.image) == "JPEG"
    assert np.abs(decode_image(prepared.image).astype(int) - (255, 0, 0)).max() <= 3


TURNED = {
    2: RGB[:, ::-1],
    3: np.rot90(RGB, 2),
    4: RGB[::-1],
    5: RGB.transpose(1, 0, 2),
    6: np.rot90(RGB, -1),
    7: np.rot90(RGB, 2).transpose(1, 0, 2),
    8: np.rot90(RGB),
}


@pytest.mark.parametrize("value", TURNED)
def test_exif_turns_the_pixels(value):
    image = prepare_image(encode_image(RGB, exif=make_orientation(value)), ShardSpec()).image
    assert np.array_equal(decode_image(image), TURNED[value])
    assert not Image.open(io.BytesIO(image)).getexif()


def test_xmp_turns_the_pixels():
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<rdf:Description tiff:Orientation="3"/>'
    assert decode_image(
        prepare_image(build_png(2, 1, 8, 0, b"\0\x11\x22", (b"iTXt", xmp)), ShardSpec()).image
    ).tolist() == [[0x22, 0x11]]


LETTER = b"II*\0\x08\0\0\0\1\0\x12\1\2\0\2\0\0\0x\0\0\0\0\0\0\0"  # an orientation that is a letter


@pytest.mark.parametrize("check", ["decode", "header"])
@pytest.mark.parametrize("exif", [b"nonsense", LETTER, LETTER[:20]])
def test_damaged_metadata_is_ignored(exif, check):
    image = insert_segment(encode_image(make_ramp(8, 8), "JPEG"), 0xE1, b"Exif\0\0" + exif)
    assert prepare_image(image, ShardSpec(check=check)).image == image


def test_a_turned_jpeg_stays_a_jpeg_without_chroma_subsampling():
    pixels = make_ramp(16, 24)
    image = prepare_image(
        encode_image(pixels, "JPEG", quality=95, exif=make_orientation(6)), ShardSpec()
    ).image
    stored = Image.open(io.BytesIO(image))
    assert stored.format == "JPEG"
    assert [layer[1:3] for layer in stored.layer] == [(1, 1)] * 3
    assert np.abs(np.asarray(stored).astype(int) - np.rot90(pixels, -1)).mean() < 3


def test_cmyk_becomes_rgb():
    image = prepare_image(
        encode_image(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95), ShardSpec()
    ).image
    assert read_format(image) == "JPEG"
    assert np.abs(decode_image(image).astype(int) - (255, 0, 0)).max() <= 3


def test_a_jpeg_stored_as_rgb_becomes_ycbcr():
    pixels = make_ramp(16, 16)
    image = encode_image(pixels, "JPEG", quality=95, keep_rgb=True)
    stored = prepare_image(image, ShardSpec()).image
    assert stored != image
    assert simplejpeg.decode_jpeg_header(stored)[2:] == ("YCbCr", "444")
    assert np.abs(decode_image(stored).astype(int) - pixels).mean() < 2


def test_a_jpeg_that_decodes_with_a_warning_is_copied():
    image = encode_image(make_ramp(16, 16), "JPEG", quality=95)
    extraneous = image[:-2] + b"extraneous" + image[-2:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(extraneous)
    stored = prepare_image(extraneous, ShardSpec()).image
    assert np.abs(simplejpeg.decode_jpeg(stored).astype(int) - decode_image(image)).max() <= 4


@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": make_orientation(6)}])
def test_a_jpeg_that_lacks_only_its_end_marker_gets_one(options, missing):
    image = encode_image(make_ramp(16, 24), "JPEG", quality=95, **options)
    prepared = prepare_image(image[:-missing], ShardSpec())
    assert prepared.image == prepare_image(image, ShardSpec()).image
    assert prepared.notices == (images.COMPLETED_JPEG,)
    for cut in (3, 11):
        with pytest.raises(UnreadableImageError, match="truncated"):
            prepare_image(image[:-cut], ShardSpec())


def test_encoding_again_drops_metadata():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (
        b"iCCP"
        not in prepare_image(
            encode_image(make_ramp(8, 8), icc_profile=profile), ShardSpec(store_size=4)
        ).image
    )


@pytest.mark.parametrize(
    ("size", "store_size", "expected"),
    [((40, 60), 20, (20, 30)), ((61, 41), 20, (30, 20)), ((20, 60), 20, (20, 60)), ((8, 9), 20, (8, 9))],
)
def test_the_shorter_side_is_limited(size, store_size, expected):
    assert (
        decode_image(
            prepare_image(encode_image(make_ramp(*size)), ShardSpec(store_size=store_size)).image
        ).shape[:2]
        == expected
    )


def test_scaling_is_antialiased():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    assert set(
        decode_image(prepare_image(encode_image(checks.astype(np.uint8)), ShardSpec(store_size=16)).image)[
            2:-2, 2:-2
        ]
        .ravel()
        .tolist()
    ) <= {127, 128}


PHOTO = encode_image(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8), "JPEG")
CHUNKS = encode_image(RGB)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "empty file"),
        (b"this is text", "not a JPEG, PNG, BMP, GIF or WebP"),
        (PHOTO[: len(PHOTO) // 2], "truncated"),
        (PHOTO[:100], "runcated|header"),
        (CHUNKS[: len(CHUNKS) // 2], "truncated"),
        (CHUNKS[:-1], "truncated PNG"),
        (CHUNKS[:-12], "truncated PNG"),
        (CHUNKS[:-5] + bytes([CHUNKS[-5] ^ 1]) + CHUNKS[-4:], "a checksum in the PNG is wrong"),
        (encode_image(RGB, "TIFF"), "not a JPEG"),
    ],
)
def test_unreadable_images_are_refused_with_a_reason(image, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        prepare_image(image, ShardSpec())


def test_a_wrong_checksum_is_refused():
    at = (
        CHUNKS.index(b"IDAT")
        + 4
        + struct.unpack(">I", CHUNKS[CHUNKS.index(b"IDAT") - 4 : CHUNKS.index(b"IDAT")])[0]
    )
    with pytest.raises(UnreadableImageError, match="damaged"):
        prepare_image(CHUNKS[:at] + bytes([CHUNKS[at] ^ 255]) + CHUNKS[at + 1 :], ShardSpec())


@pytest.mark.parametrize("check", ["decode", "header"])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(check):
    jpeg = encode_image(make_ramp(8, 8), "JPEG")
    for side in (10_000, 60_000):  # Pillow only warns about the first
        for bomb in (
            build_png(side, side, 8, 2, b""),
            build_png(side, side, 16, 2, b""),
            patch_bytes(jpeg, 0xC0, 5, struct.pack(">HH", side, side)),
        ):
            with pytest.raises(UnreadableImageError, match="more than 89478485 pixels"):
                prepare_image(bomb, ShardSpec(check=check))


def test_a_side_longer_than_decoders_accept_is_refused():
    for image in (
        encode_image(np.zeros((1, 65_501), np.uint8)),
        encode_image(np.zeros((65_501, 1), np.uint8), "BMP"),
    ):
        with pytest.raises(UnreadableImageError, match="more than 65500 pixels per side"):
            prepare_image(image, ShardSpec())
    assert prepare_image(encode_image(np.zeros((1, 65_500), np.uint8)), ShardSpec()).shape == (1, 65_500, 1)


@pytest.mark.parametrize("source", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_damaged_images_are_refused_or_decode(source):
    image = encode_image(RGB, source)
    for seed in range(150):
        draws = np.random.default_rng(seed)
        damaged = bytearray(image)
        damaged[draws.integers(len(image))] = draws.integers(256)
        try:
            ready = prepare_image(
                bytes(damaged[: draws.integers(len(image) // 2, len(image) + 1)]), ShardSpec(store_size=2)
            )
        except UnreadableImageError:
            continue
        assert min(decode_image(ready.image).shape[:2]) >= 1
