"""What is stored of one source image: its bytes as found where any decoder reads them alike, else a plain copy."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")
JPEGS = ("JPEG", "MPO")  # MPO, which some cameras write: a JPEG with more JPEGs behind it
MAX_PIXELS = 89_478_485  # 256 MiB of RGB
ORIENTATION = 0x0112  # EXIF tag: values 2 to 8 mean that the picture is to be turned
JPEG_QUALITY = 95
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)


class UnreadableImageError(Exception):
    """The bytes are no image that can be stored; the message is the reason."""


class Prepared(NamedTuple):
    """An image ready to be stored.

    Attributes:
        image: The encoded file: JPEG, or 8-bit PNG.
        histogram: int64 `[3, 256]`, pixels per value of R, G and B; greyscale counts in all three.
    """

    image: bytes
    histogram: NDArray[np.int64]


def prepare(image: bytes, store_size: int | None) -> Prepared:
    """Decodes an image completely, which proves that it can be read, and decides what to store.

    The bytes stay exactly as found for a JPEG (greyscale or colour, not turned by EXIF) and for an 8-bit greyscale
    or RGB PNG, where they need no resizing. Anything else is normalised here, once, so that every decoder sees the
    same pixels: turned as EXIF says, CMYK to RGB, laid over white where transparent, 16 bits cut to the upper 8,
    palette to RGB, the first frame of an animation. What came as JPEG is stored as JPEG of quality 95 without chroma
    subsampling, all else as PNG. The content counts, not the name of the file.

    Args:
        image: The file as found.
        store_size: Longest allowed shorter side in pixels; None for any. Larger images are scaled down with
            antialiasing and keep their proportions, smaller ones stay as they are.

    Raises:
        UnreadableImageError: The file is empty, truncated, damaged, too large, or of another format.
    """
    if not image:
        raise UnreadableImageError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is no reason to talk
        try:
            return _prepare(image, store_size)
        except UnidentifiedImageError:
            raise UnreadableImageError("not a JPEG, PNG, BMP, GIF or WebP image, or a damaged header") from None
        except Image.DecompressionBombError:
            raise UnreadableImageError(f"more than {MAX_PIXELS} pixels") from None
        except DAMAGE as error:
            raise UnreadableImageError(f"damaged: {error}") from None


def _prepare(data: bytes, store_size: int | None) -> Prepared:
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise UnreadableImageError(f"more than {MAX_PIXELS} pixels: {picture.width} x {picture.height}")
        if picture.format == "PNG":
            _check_chunks(data)
        is_jpeg = picture.format in JPEGS
        turn = TURNS.get(_orientation(picture))
        picture.load()
        if turn is None and _is_plain(picture, data) and (store_size is None or min(picture.size) <= store_size):
            return Prepared(data, _histogram(picture))
        pixels = _normalised(picture)
    pixels = pixels if turn is None else pixels.transpose(turn)
    pixels = pixels if store_size is None else _shrunk(pixels, store_size)
    return Prepared(_encoded(pixels, is_jpeg), _histogram(pixels))


def _check_chunks(data: bytes) -> None:
    """Walks the chunks of a PNG, because Pillow reads some damaged files that stricter decoders refuse."""
    at, kind = 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", data[at : at + 8].ljust(8, b"\0"))
        end = at + 12 + length
        if end > len(data):
            raise UnreadableImageError("truncated PNG")
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise UnreadableImageError("damaged PNG: a checksum is wrong")
        at = end


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except DAMAGE:  # broken metadata around a good picture
        return 1


def _is_plain(picture: Image.Image, data: bytes) -> bool:
    """Whether every decoder makes the same 8-bit greyscale or RGB pixels of the file."""
    if picture.mode not in ("L", "RGB"):
        return False
    if picture.format == "JPEG":
        return True
    header = data[24:26]  # bit depth, and colour type: 0 greyscale, 2 RGB
    animated = getattr(picture, "is_animated", False)
    return picture.format == "PNG" and header in (b"\x08\x00", b"\x08\x02") and not animated and "transparency" not in picture.info


def _normalised(picture: Image.Image) -> Image.Image:
    """An 8-bit picture of mode L or RGB."""
    if picture.mode.startswith("I"):  # 16 bits
        return Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture if picture.mode == "L" else picture.convert("L" if picture.mode == "1" else "RGB")


def _shrunk(picture: Image.Image, store_size: int) -> Image.Image:
    shorter = min(picture.size)
    if shorter <= store_size:
        return picture
    width, height = (max(round(side * store_size / shorter), 1) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _encoded(picture: Image.Image, is_jpeg: bool) -> bytes:
    file = io.BytesIO()
    clean = Image.frombytes(picture.mode, picture.size, picture.tobytes())  # without the source's metadata
    if is_jpeg:
        clean.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        clean.save(file, "PNG")
    return file.getvalue()


def _histogram(picture: Image.Image) -> NDArray[np.int64]:
    counts = np.array(picture.histogram(), np.int64).reshape(-1, 256)
    return np.broadcast_to(counts, (3, 256)).copy()
