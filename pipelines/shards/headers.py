"""What the header of an image file tells without decoding it: its shape, and whether every decoder reads it alike."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

from pipelines.records import Shape

PNG = b"\x89PNG\r\n\x1a\n"
START_OF_SCAN = 0xDA
FRAMES = {*range(0xC0, 0xD0)} - {
    0xC4
}  # every way to code a JPEG, and signs of the rare ones; 0xC4 is a table
PLAIN_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive: all with Huffman codes
APP1, APP2, APP14 = 0xE1, 0xE2, 0xEE
METADATA = {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}  # where a PNG may say that it is to be turned


class Header(NamedTuple):
    """A JPEG or PNG whose pixels are the same to every decoder.

    Attributes:
        shape: `(height, width, channels)`, 1 channel for greyscale and 3 for colour.
        jpeg: Whether it is a JPEG.
        metadata: Whether there is metadata that may ask for the picture to be turned.
    """

    shape: Shape
    jpeg: bool
    metadata: bool


def read_plain_header(data: bytes) -> Header | None:
    """Reads the header of an 8-bit greyscale or colour JPEG or PNG.

    A plain JPEG (ITU-T T.81) is coded by Huffman codes, and greyscale or YCbCr; a plain PNG is greyscale or RGB, of
    one frame and without transparency. All chunks of a PNG are held against their checksums.

    Returns:
        None for anything else, and where the header of a JPEG is damaged.

    Raises:
        ValueError: A PNG is truncated or damaged.
    """
    if data.startswith(b"\xff\xd8"):
        return _read_jpeg(data)
    return _read_png(data) if data.startswith(PNG) else None


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment of a JPEG up to the first scan; stops short where the file is damaged."""
    at, marker = 2, 0
    while marker != START_OF_SCAN and data[at : at + 1] == b"\xff":
        marker = int.from_bytes(data[at + 1 : at + 2], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end > len(data):
            return
        yield marker, data[at + 4 : end]
        at = end


def _read_jpeg(data: bytes) -> Header | None:
    shape, metadata, marker = None, False, 0
    for marker, content in _segments(data):
        metadata |= marker == APP1
        if marker in FRAMES:
            if shape is not None or marker not in PLAIN_FRAMES:
                return None
            shape = _frame_shape(content)
            if shape is None:
                return None
        elif marker == APP2 and content.startswith(b"MPF\0"):
            return None  # several pictures in one file
        elif marker == APP14 and content.startswith(b"Adobe") and content[11:12] != b"\1":
            return None  # stored as RGB, CMYK or YCCK, or does not say
    return Header(shape, True, metadata) if shape is not None and marker == START_OF_SCAN else None


def _frame_shape(content: bytes) -> Shape | None:
    """The shape in a frame header: precision, height, width, number of components, 3 bytes for each."""
    height, width = int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
    channels, components = content[5:6], content[6::3]
    sound = len(content) == 6 + 3 * len(components) and channels == bytes([len(components)])
    plain = content[:1] == b"\x08" and len(components) in (1, 3) and components != b"RGB"
    return (height, width, len(components)) if sound and plain and height and width else None


def _read_png(data: bytes) -> Header | None:
    at, kinds = len(PNG), set[bytes]()
    while b"IEND" not in kinds:
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            raise ValueError("truncated PNG")
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ValueError("a checksum in the PNG is wrong")
        kinds.add(kind)
        at = end
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    channels = {b"\x08\x00": 1, b"\x08\x02": 3}.get(data[24:26])  # 8 bits; greyscale or RGB
    plain = channels is not None and data[12:16] == b"IHDR" and not kinds & {b"tRNS", b"acTL"}
    return (
        Header((height, width, channels), False, bool(kinds & METADATA))
        if plain and channels and height and width
        else None
    )
