"""Which JPEG and PNG headers are plain; every damaged one is found."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import simplejpeg
from image_samples import (
    build_chunks,
    build_png,
    encode_image,
    insert_segment,
    make_noise,
    make_orientation,
    make_ramp,
    patch_bytes,
)
from PIL import Image

from pipelines.shards.headers import Header, read_plain_header

JPEG = encode_image(make_ramp(9, 14), "JPEG")  # height 9, width 14


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
def test_any_chroma_subsampling_is_plain(subsampling):
    assert read_plain_header(simplejpeg.encode_jpeg(make_noise(9, 14), 90, "RGB", subsampling)) == Header(
        (9, 14, 3), True, False
    )


def test_headers_of_plain_files():
    assert read_plain_header(encode_image(make_ramp(9, 14)[..., 0], "JPEG")) == Header(
        (9, 14, 1), True, False
    )
    assert read_plain_header(
        encode_image(make_ramp(9, 14), "JPEG", progressive=True, comment="text")
    ) == Header((9, 14, 3), True, False)
    assert read_plain_header(encode_image(make_ramp(9, 14))) == Header((9, 14, 3), False, False)
    assert read_plain_header(encode_image(make_ramp(9, 14)[..., 0])) == Header((9, 14, 1), False, False)


def test_metadata_is_reported():
    for form in ("JPEG", "PNG"):
        assert read_plain_header(encode_image(make_ramp(9, 14), form, exif=make_orientation(1))) == Header(
            (9, 14, 3), form == "JPEG", True
        )
    for kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
        assert read_plain_header(build_png(14, 9, 8, 2, b"", (kind, b""))) == Header((9, 14, 3), False, True)
    assert read_plain_header(build_png(14, 9, 8, 2, b"", (b"gAMA", b""))) == Header((9, 14, 3), False, False)


def test_fill_bytes_and_ycc_by_adobe_are_plain():
    assert read_plain_header(JPEG[:2] + b"\xff\xff" + JPEG[2:]) == read_plain_header(JPEG)
    assert read_plain_header(insert_segment(JPEG, 0xEE, b"Adobe\0d\0\0\0\0\1")) == read_plain_header(JPEG)
    assert read_plain_header(insert_segment(JPEG, 0xEE, b"another program")) == read_plain_header(JPEG)


@pytest.mark.parametrize(("components", "plain"), [(1, True), (2, False), (3, True), (4, False)])
def test_only_one_and_three_components_are_plain(components, plain):
    frame = (
        b"\x08"
        + struct.pack(">HHB", 9, 14, components)
        + b"".join(bytes([i, 0x11, 0]) for i in range(components))
    )
    header = read_plain_header(insert_segment(insert_segment(b"\xff\xd8", 0xDA, b"scan"), 0xC0, frame))
    assert header == (Header((9, 14, components), True, False) if plain else None)


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF])
def test_lossless_hierarchical_and_arithmetic_jpegs_are_not_plain(marker):
    assert read_plain_header(patch_bytes(JPEG, 0xC0, 1, bytes([marker]))) is None


@pytest.mark.parametrize(
    "image",
    [
        patch_bytes(JPEG, 0xC0, 4, b"\x0c"),  # 12 bits
        patch_bytes(JPEG, 0xC0, 5, b"\0\0"),  # the height follows after the scan
        patch_bytes(JPEG, 0xC0, 7, b"\0\0"),
        patch_bytes(JPEG, 0xC0, 9, b"\4"),  # more components than the segment holds
        patch_bytes(JPEG, 0xC0, 10, b"R\x11\0G\x11\0B"),
        insert_segment(JPEG, 0xC1, JPEG[JPEG.index(b"\xff\xc0") + 4 :][:15]),  # two frames
        insert_segment(JPEG, 0xE2, b"MPF\0"),
        insert_segment(JPEG, 0xEE, b"Adobe\0d\0\0\0\0\0"),
        insert_segment(JPEG, 0xEE, b"Adobe"),
        encode_image(Image.new("CMYK", (8, 8)), "JPEG"),
        encode_image(make_ramp(9, 14), "JPEG", keep_rgb=True),
        JPEG[:2] + b"\0" + JPEG[2:],
        JPEG[:2] + b"\xff\xe0\0\1" + JPEG[2:],  # a segment shorter than its own length
        JPEG[: JPEG.index(b"\xff\xda")],
        JPEG[: JPEG.index(b"\xff\xda") + 2],
        JPEG[: JPEG.index(b"\xff\xda") + 3],
        JPEG[: JPEG.index(b"\xff\xda") + 6],
        JPEG[: JPEG.index(b"\xff\xc0") + 9],
        JPEG[:2],
        JPEG[:3],
        b"\xff\xd8" + b"\xff" * 20,
    ],
)
def test_unusual_and_damaged_jpegs_are_not_plain(image):
    assert read_plain_header(image) is None


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"text",
        encode_image(make_ramp(9, 14), "BMP"),
        encode_image(np.zeros((9, 14, 4), np.uint8)),
        encode_image(np.zeros((9, 14), np.uint16)),
        encode_image(Image.new("P", (14, 9))),
        encode_image(Image.new("1", (14, 9))),
        encode_image(Image.new("RGB", (14, 9)), transparency=(0, 0, 0)),
        encode_image(
            Image.new("RGB", (14, 9)), save_all=True, append_images=[Image.new("RGB", (14, 9), "red")]
        ),
        build_png(0, 9, 8, 2, b""),
        build_png(14, 0, 8, 2, b""),
        build_chunks((b"tEXt", struct.pack(">IIBBBBB", 14, 9, 8, 2, 0, 0, 0)), (b"IEND", b"")),
    ],
)
def test_other_formats_and_depths_are_not_plain(image):
    assert read_plain_header(image) is None


def test_every_changed_byte_of_a_png_is_found():
    image = encode_image(make_ramp(9, 14))
    for at in range(16, len(image)):
        with pytest.raises(ValueError, match=r"truncated PNG|a checksum in the PNG is wrong"):
            read_plain_header(image[:at] + bytes([image[at] ^ 4]) + image[at + 1 :])
        with pytest.raises(ValueError, match="truncated PNG"):
            read_plain_header(image[:at])
