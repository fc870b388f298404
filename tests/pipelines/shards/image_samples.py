"""Encoded pictures for tests."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from pipelines.shards.images import ORIENTATION

# [3, 2, 3]
RGB = np.array(
    [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]], [[7, 7, 7], [200, 100, 50]]], np.uint8
)
GREY = np.array([[0, 50], [100, 255]], np.uint8)


def encode_image(pixels: np.ndarray | Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(file, form, **options)
    return file.getvalue()


def decode_image(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)))


def read_format(image: bytes) -> str:
    return str(Image.open(io.BytesIO(image)).format)


def make_ramp(height: int, width: int) -> np.ndarray:
    """A ramp to the right in red and downwards in green, which JPEG keeps almost exactly."""
    down, right = np.mgrid[:height, :width]
    red = right * 255 // (width - 1)
    green = down * 255 // (height - 1)
    return np.stack([red, green, np.full_like(down, 90)], -1).astype(np.uint8)


def make_noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, channels), np.uint8)


def make_orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif


def build_png(
    width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]
) -> bytes:
    """Builds a PNG that Pillow would not write, from rows with their filter bytes and further chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return build_chunks((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


def build_chunks(*parts: tuple[bytes, bytes]) -> bytes:
    """Builds a PNG from its chunks."""
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def insert_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    """Inserts a segment into a JPEG, after its first two bytes."""
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


def patch_bytes(jpeg: bytes, marker: int, at: int, value: bytes) -> bytes:
    """Replaces bytes of a JPEG at an offset from a marker, whose own two bytes are 0 and 1."""
    start = jpeg.index(bytes([0xFF, marker])) + at
    return jpeg[:start] + value + jpeg[start + len(value) :]
