"""Prepares source images for storage: unchanged if all decoders agree on their pixels, else normalised."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipelines.records import Shape
from pipelines.shards import codec
from pipelines.shards.codec import Pixels
from pipelines.shards.headers import Header, read_plain_header
from pipelines.spec import ShardSpec

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")
MAX_PIXELS = 89_478_485  # 256 MiB of RGB
MAX_SIDE = 65_500  # limit of libjpeg; that of libpng is somewhat higher
ORIENTATION = 0x0112  # EXIF tag; values 2 to 8 ask for the picture to be turned or mirrored
COPY_QUALITY = 95  # quality of JPEGs that have to be normalised
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DAMAGE_ERRORS = (  # raised by Pillow on damaged files
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


class UnreadableImageError(Exception):
    """An image that cannot be stored; the message is the reason."""


class PreparedImage(NamedTuple):
    """An image ready to be stored.

    Attributes:
        image: Content of the encoded file, JPEG or 8-bit PNG, or raw pixels (uint8 in row order).
        shape: `(height, width, channels)` of the stored image.
        pixel_sums: int64 `[3, 3]`: for R, G and B the number of pixels, their sum and the sum of their
            squares (see `pipelines.shards.codec.sum_pixels`). None if only headers are checked.
    """

    image: bytes
    shape: Shape
    pixel_sums: NDArray[np.int64] | None


def prepare_image(image: bytes, spec: ShardSpec) -> PreparedImage:
    """Decides how an image is stored, and decodes it completely, which proves that it can be read.

    With the encoding `as-found`, the bytes of JPEGs (greyscale or YCbCr, not rotated by EXIF) and of PNGs
    (8-bit greyscale or RGB) are kept if they need no resizing and decode without a warning. Any other image
    is normalised here, once, so that every decoder sees the same pixels:

    - rotated according to EXIF,
    - converted from CMYK or a palette to RGB,
    - blended with white where transparent,
    - reduced to the upper 8 of 16 bits,
    - reduced to the first frame of an animation.

    Normalised JPEGs are stored as JPEG of quality 95 without chroma subsampling, including those that decode
    with a warning (extraneous bytes, for example); all other images become PNG. The content decides the
    format, not the name of the file.

    The other encodings encode every image again: `jpeg:QUALITY` (with 4:2:0 chroma subsampling), `png`,
    `raw`.

    Args:
        image: Content of the file as found.
        spec: Options of the shard set. Images larger than `store_size` are scaled down with antialiasing and
            keep their proportions, smaller ones keep their size. With `check="header"`, images that are kept
            as found are not decoded: only their header is read.

    Raises:
        UnreadableImageError: The file is empty, truncated, damaged, too large, or of another format.
    """
    if not image:
        raise UnreadableImageError("empty file")
    try:
        return _prepare(image, spec)
    except UnidentifiedImageError:
        raise UnreadableImageError("not a JPEG, PNG, BMP, GIF or WebP image, or a damaged header") from None
    except Image.DecompressionBombError:
        raise UnreadableImageError(f"more than {MAX_PIXELS} pixels") from None
    except DAMAGE_ERRORS as error:
        raise UnreadableImageError(f"damaged: {error}") from None


def _prepare(data: bytes, spec: ShardSpec) -> PreparedImage:
    header = read_plain_header(data)
    if header is not None:
        _check_size(header.shape[1], header.shape[0])
        if header.has_metadata and _is_turned(data):
            header = None
    keeps_size = header is not None and (spec.store_size is None or min(header.shape[:2]) <= spec.store_size)
    may_keep = keeps_size and spec.encoding == "as-found"
    if header is not None and may_keep and spec.check == "header":
        return PreparedImage(data, header.shape, None)

    pixels, is_clean = _decode(data, header)
    if spec.store_size is not None:
        pixels = _shrink(pixels, spec.store_size)
    image = data if may_keep and is_clean else _encode(pixels, spec.encoding, data.startswith(b"\xff\xd8"))
    height, width, channels = pixels.shape
    pixel_sums = None if spec.check == "header" else codec.sum_pixels(pixels)
    return PreparedImage(image, (height, width, channels), pixel_sums)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f"more than {MAX_PIXELS} pixels: {width} x {height}")
    if max(width, height) > MAX_SIDE:
        raise UnreadableImageError(f"more than {MAX_SIDE} pixels per side: {width} x {height}")


def _decode(data: bytes, header: Header | None) -> tuple[Pixels, bool]:
    """Returns the normalised pixels, and whether every decoder decodes the given bytes to exactly these."""
    if header is not None and header.is_jpeg:
        pixels = codec.decode_jpeg(data, header.shape[2])
        if pixels is not None:
            return pixels, True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as those about unusual metadata
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            _check_size(*picture.size)
            turn = TURNS.get(_read_orientation(picture))
            picture.load()
            normalised = _normalise(picture, data)
    if turn is not None:
        normalised = normalised.transpose(turn)
    return codec.from_pillow(normalised), header is not None and not header.is_jpeg


def _is_turned(data: bytes) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return _read_orientation(picture) in TURNS


def _read_orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except DAMAGE_ERRORS:  # the metadata is damaged, which says nothing about the picture
        return 1


def _normalise(picture: Image.Image, data: bytes) -> Image.Image:
    """Converts a picture to 8 bits and mode L or RGB."""
    if picture.format == "PNG" and picture.mode not in ("P", "PA"):
        picture = _reduce_depth(picture, depth=data[24])
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if picture.mode == "L":
        return picture
    return picture.convert("L" if picture.mode == "1" else "RGB")


def _reduce_depth(picture: Image.Image, depth: int) -> Image.Image:
    """Converts a PNG of any bit depth to 8 bits, and also its transparent colour, unlike Pillow."""
    key = picture.info.pop("transparency", None)
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8))
    if isinstance(key, tuple):
        picture.info["transparency"] = tuple(_reduce_value(value, depth) for value in key)
    elif key is not None:
        picture.info["transparency"] = _reduce_value(key, depth)
    return picture


def _reduce_value(value: int, depth: int) -> int:
    return value >> 8 if depth == 16 else value * 255 // (2**depth - 1)


def _shrink(pixels: Pixels, store_size: int) -> Pixels:
    shorter = min(pixels.shape[:2])
    if shorter <= store_size:
        return pixels
    height = round(pixels.shape[0] * store_size / shorter)
    width = round(pixels.shape[1] * store_size / shorter)
    return codec.from_pillow(codec.to_pillow(pixels).resize((width, height), Image.Resampling.BICUBIC))


def _encode(pixels: Pixels, encoding: str, was_jpeg: bool) -> bytes:
    if encoding == "raw":
        return pixels.tobytes()
    if encoding == "as-found" and was_jpeg:
        return codec.encode_jpeg(pixels, COPY_QUALITY, "444")
    if encoding.startswith("jpeg:"):
        return codec.encode_jpeg(pixels, int(encoding.removeprefix("jpeg:")), "420")
    return codec.encode_png(pixels)
