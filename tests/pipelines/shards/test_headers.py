from __future__ import annotations

import struct

import numpy as np
import pytest
import simplejpeg
from image_samples import chunked, encode, noise, orientation, patched, png, smooth, with_segment
from PIL import Image

from pipelines.shards.headers import Header, read_plain_header

JPEG = encode(smooth(9, 14), "JPEG")  # height 9, width 14


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
def test_a_plain_jpeg_of_any_subsampling(subsampling):
    assert read_plain_header(simplejpeg.encode_jpeg(noise(9, 14), 90, "RGB", subsampling)) == Header(
        (9, 14, 3), True, False
    )


def test_plain_files():
    assert read_plain_header(encode(smooth(9, 14)[..., 0], "JPEG")) == Header((9, 14, 1), True, False)
    assert read_plain_header(encode(smooth(9, 14), "JPEG", progressive=True, comment="words")) == Header(
        (9, 14, 3), True, False
    )
    assert read_plain_header(encode(smooth(9, 14))) == Header((9, 14, 3), False, False)
    assert read_plain_header(encode(smooth(9, 14)[..., 0])) == Header((9, 14, 1), False, False)


def test_metadata_is_seen():
    for form in ("JPEG", "PNG"):
        assert read_plain_header(encode(smooth(9, 14), form, exif=orientation(1))) == Header(
            (9, 14, 3), form == "JPEG", True
        )
    for kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
        assert read_plain_header(png(14, 9, 8, 2, b"", (kind, b""))) == Header((9, 14, 3), False, True)
    assert read_plain_header(png(14, 9, 8, 2, b"", (b"gAMA", b""))) == Header((9, 14, 3), False, False)


def test_fill_bytes_and_ycc_by_adobe_are_plain():
    assert read_plain_header(JPEG[:2] + b"\xff\xff" + JPEG[2:]) == read_plain_header(JPEG)
    assert read_plain_header(with_segment(JPEG, 0xEE, b"Adobe\0d\0\0\0\0\1")) == read_plain_header(JPEG)
    assert read_plain_header(with_segment(JPEG, 0xEE, b"another program")) == read_plain_header(JPEG)


@pytest.mark.parametrize(("components", "plain"), [(1, True), (2, False), (3, True), (4, False)])
def test_only_one_and_three_components_are_plain(components, plain):
    frame = (
        b"\x08"
        + struct.pack(">HHB", 9, 14, components)
        + b"".join(bytes([i, 0x11, 0]) for i in range(components))
    )
    header = read_plain_header(with_segment(with_segment(b"\xff\xd8", 0xDA, b"scan"), 0xC0, frame))
    assert header == (Header((9, 14, components), True, False) if plain else None)


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF])
def test_lossless_hierarchical_and_arithmetic_jpegs_are_not_plain(marker):
    assert read_plain_header(patched(JPEG, 0xC0, 1, bytes([marker]))) is None


@pytest.mark.parametrize(
    "image",
    [
        patched(JPEG, 0xC0, 4, b"\x0c"),  # 12 bits
        patched(JPEG, 0xC0, 5, b"\0\0"),  # a height that comes later
        patched(JPEG, 0xC0, 7, b"\0\0"),
        patched(JPEG, 0xC0, 9, b"\4"),  # more components than the segment holds
        patched(JPEG, 0xC0, 10, b"R\x11\0G\x11\0B"),
        with_segment(JPEG, 0xC1, JPEG[JPEG.index(b"\xff\xc0") + 4 :][:15]),  # two frames
        with_segment(JPEG, 0xE2, b"MPF\0"),
        with_segment(JPEG, 0xEE, b"Adobe\0d\0\0\0\0\0"),
        with_segment(JPEG, 0xEE, b"Adobe"),
        encode(Image.new("CMYK", (8, 8)), "JPEG"),
        encode(smooth(9, 14), "JPEG", keep_rgb=True),
        JPEG[:2] + b"\0" + JPEG[2:],
        JPEG[:2] + b"\xff\xe0\0\1" + JPEG[2:],  # a segment shorter than its own length
        JPEG[: JPEG.index(b"\xff\xda")],
        JPEG[: JPEG.index(b"\xff\xda") + 6],
        JPEG[: JPEG.index(b"\xff\xc0") + 9],
        JPEG[:2],
        JPEG[:3],
        b"\xff\xd8" + b"\xff" * 20,
    ],
)
def test_what_is_unusual_or_damaged_is_not_plain(image):
    assert read_plain_header(image) is None


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"words",
        encode(smooth(9, 14), "BMP"),
        encode(np.zeros((9, 14, 4), np.uint8)),
        encode(np.zeros((9, 14), np.uint16)),
        encode(Image.new("P", (14, 9))),
        encode(Image.new("1", (14, 9))),
        encode(Image.new("RGB", (14, 9)), transparency=(0, 0, 0)),
        encode(Image.new("RGB", (14, 9)), save_all=True, append_images=[Image.new("RGB", (14, 9), "red")]),
        png(0, 9, 8, 2, b""),
        png(14, 0, 8, 2, b""),
        chunked((b"tEXt", struct.pack(">IIBBBBB", 14, 9, 8, 2, 0, 0, 0)), (b"IEND", b"")),
    ],
)
def test_other_pictures_are_not_plain(image):
    assert read_plain_header(image) is None


def test_a_png_is_held_against_its_checksums():
    image = encode(smooth(9, 14))
    for at in range(16, len(image)):
        with pytest.raises(ValueError, match=r"truncated PNG|a checksum in the PNG is wrong"):
            read_plain_header(image[:at] + bytes([image[at] ^ 4]) + image[at + 1 :])
        with pytest.raises(ValueError, match="truncated PNG"):
            read_plain_header(image[:at])
