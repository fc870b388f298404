"""Reads the header of a JPEG or PNG: its shape, and whether all decoders decode it alike."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from pipelines.records import Shape

PNG = b"\x89PNG\r\n\x1a\n"
START_OF_SCAN = 0xDA
SEGMENT = struct.Struct(">BBH")  # of a JPEG: 0xFF, marker, size of the rest
FRAMES = {*range(0xC0, 0xD0)} - {0xC4}  # all codings of a JPEG; 0xC4 is a table
PLAIN_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive: all with Huffman codes
APP1 = 0xE1
APP2 = 0xE2
APP14 = 0xEE
PNG_METADATA = {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}  # chunks that may hold an EXIF orientation
PNG_CHANNELS = {b"\x08\x00": 1, b"\x08\x02": 3}  # of 8 bits: greyscale, RGB


class Header(NamedTuple):
    """Header of a JPEG or PNG that all decoders decode to the same pixels.

    Attributes:
        shape: `(height, width, channels)`, 1 channel for greyscale and 3 for colour.
        is_jpeg: Whether the file is a JPEG, else a PNG.
        has_metadata: Whether there is metadata that may hold an EXIF orientation.
    """

    shape: Shape
    is_jpeg: bool
    has_metadata: bool


def read_plain_header(data: bytes) -> Header | None:
    """Reads the header of an 8-bit greyscale or colour JPEG or PNG.

    A plain JPEG (ITU-T T.81) is coded with Huffman codes, and greyscale or YCbCr; a plain PNG is greyscale or
    RGB, with one frame and without transparency. The checksums of all chunks of a PNG are checked.

    Args:
        data: Content of an image file.

    Returns:
        None for anything else, and for a JPEG with a damaged header.

    Raises:
        ValueError: A PNG is truncated or damaged.
    """
    if data.startswith(b"\xff\xd8"):
        return _read_jpeg(data)
    if data.startswith(PNG):
        return _read_png(data)
    return None


def _read_jpeg(data: bytes) -> Header | None:
    shape = None
    has_metadata = False
    marker = 0
    for marker, content in _iterate_segments(data):
        has_metadata |= marker == APP1
        if marker in FRAMES:
            if shape is not None or marker not in PLAIN_FRAMES:
                return None
            shape = _read_frame_shape(content)
            if shape is None:
                return None
        elif marker == APP2 and content.startswith(b"MPF\0"):
            return None  # several pictures in one file
        elif marker == APP14 and content.startswith(b"Adobe") and content[11:12] != b"\1":
            return None  # RGB, CMYK, YCCK or unknown
    if shape is None or marker != START_OF_SCAN:
        return None
    return Header(shape, is_jpeg=True, has_metadata=has_metadata)


def _iterate_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields marker and content of each segment of a JPEG up to the first scan, or up to a damaged one."""
    start = 2
    marker = 0
    while marker != START_OF_SCAN and start + SEGMENT.size <= len(data):
        first, marker, size = SEGMENT.unpack_from(data, start)
        if first != 0xFF:
            return
        if marker == 0xFF:  # a fill byte
            start += 1
            continue
        end = start + 2 + size
        if end > len(data):
            return
        yield marker, data[start + 4 : end]
        start = end


def _read_frame_shape(content: bytes) -> Shape | None:
    """Reads the shape from a frame header, None if it is damaged or not plain.

    The header consists of precision (1 byte), height (2), width (2), number of components (1), and 3 bytes
    for each component.
    """
    height = int.from_bytes(content[1:3], "big")
    width = int.from_bytes(content[3:5], "big")
    channels = content[5:6]
    components = content[6::3]
    is_whole = len(content) == 6 + 3 * len(components) and channels == bytes([len(components)])
    is_plain = content[:1] == b"\x08" and len(components) in (1, 3) and components != b"RGB"
    if not (is_whole and is_plain and height and width):
        return None
    return height, width, len(components)


def _read_png(data: bytes) -> Header | None:
    start = len(PNG)
    kinds: set[bytes] = set()
    while b"IEND" not in kinds:
        # a chunk: length of the content (4 bytes), kind (4), content, CRC-32 of kind and content (4)
        kind = data[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if end > len(data):
            raise ValueError("truncated PNG")
        if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ValueError("a checksum in the PNG is wrong")
        kinds.add(kind)
        start = end
    width = int.from_bytes(data[16:20], "big")
    height = int.from_bytes(data[20:24], "big")
    channels = PNG_CHANNELS.get(data[24:26])
    is_plain = data[12:16] == b"IHDR" and not kinds & {b"tRNS", b"acTL"}  # transparency, animation
    if channels is None or not (is_plain and height and width):
        return None
    return Header((height, width, channels), is_jpeg=False, has_metadata=bool(kinds & PNG_METADATA))
