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

from pipelines.records import Shape
from pipelines.shards import codec
from pipelines.shards.codec import Pixels
from pipelines.shards.headers import Header, read_plain_header
from pipelines.spec import ShardSpec

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")
JPEGS = ("JPEG", "MPO")  # MPO, which some cameras write: a JPEG with more JPEGs behind it
MAX_PIXELS = 89_478_485  # 256 MiB of RGB
MAX_SIDE = 65_500  # of libjpeg; libpng takes somewhat more
ORIENTATION = 0x0112  # EXIF tag: values 2 to 8 mean that the picture is to be turned
COPY_QUALITY = 95
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DAMAGE = (
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
    """The bytes are no image that can be stored; the message is the reason."""


class PreparedImage(NamedTuple):
    """An image ready to be stored.

    Attributes:
        image: The encoded file, JPEG or 8-bit PNG, or raw pixels (uint8 in row order).
        shape: `(height, width, channels)` of the stored image.
        moments: int64 `[3, 3]`: for R, G and B the number of pixels, their sum and the sum of their squares, see
            `pipelines.shards.codec.sum_pixels`. None where only headers are checked.
    """

    image: bytes
    shape: Shape
    moments: NDArray[np.int64] | None


def prepare_image(image: bytes, spec: ShardSpec) -> PreparedImage:
    """Decides what to store of an image, and decodes it completely, which proves that it can be read.

    As found, the bytes stay what they are for a JPEG (greyscale or YCbCr, not turned by EXIF) and for an 8-bit
    greyscale or RGB PNG, where they need no resizing and decode without a complaint. Anything else is normalised
    here, once, so that every decoder sees the same pixels: turned as EXIF says, CMYK to RGB, laid over white where
    transparent, 16 bits cut to the upper 8, palette to RGB, the first frame of an animation. A copy of what came as
    JPEG is a JPEG of quality 95 without chroma subsampling, all else becomes PNG. So does a JPEG that decoders warn
    of but can read (bytes astray, say) get a clean copy. The content counts, not the name of the file.

    The other encodings write every image again: `jpeg:QUALITY` with chroma at half resolution (4:2:0), `png`, `raw`.

    Args:
        image: The file as found.
        spec: How shards are made. Images larger than its `store_size` are scaled down with antialiasing and keep
            their proportions, smaller ones stay as they are. With `check="header"` an image that stays as found is
            not decoded: only its header is read.

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
    except DAMAGE as error:
        raise UnreadableImageError(f"damaged: {error}") from None


def _prepare(data: bytes, spec: ShardSpec) -> PreparedImage:
    header = read_plain_header(data)
    if header is not None:
        _check_size(header.shape[1], header.shape[0])
        if header.metadata and _is_turned(data):
            header = None
    fits = header is not None and (spec.store_size is None or min(header.shape[:2]) <= spec.store_size)
    as_found = fits and spec.encoding == "as-found"
    if header is not None and as_found and spec.check == "header":
        return PreparedImage(data, header.shape, None)
    pixels, clean = _decoded(data, header)
    pixels = pixels if spec.store_size is None else _shrunk(pixels, spec.store_size)
    image = data if as_found and clean else _encoded(pixels, spec.encoding, data.startswith(b"\xff\xd8"))
    return PreparedImage(
        image,
        (pixels.shape[0], pixels.shape[1], pixels.shape[2]),
        None if spec.check == "header" else codec.sum_pixels(pixels),
    )


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f"more than {MAX_PIXELS} pixels: {width} x {height}")
    if max(width, height) > MAX_SIDE:
        raise UnreadableImageError(f"more than {MAX_SIDE} pixels a side: {width} x {height}")


def _decoded(data: bytes, header: Header | None) -> tuple[Pixels, bool]:
    """The normalised pixels, and whether any decoder makes the same of the bytes as they are."""
    if header is not None and header.jpeg:
        pixels = codec.decode_jpeg(data, header.shape[2])
        if pixels is not None:
            return pixels, True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is no reason to talk
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            _check_size(*picture.size)
            turn = TURNS.get(_orientation(picture))
            picture.load()
            upright = _normalised(picture, data)
    pixels = codec.from_pillow(upright if turn is None else upright.transpose(turn))
    return pixels, header is not None and not header.jpeg


def _is_turned(data: bytes) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return _orientation(picture) in TURNS


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except DAMAGE:  # broken metadata around a good picture
        return 1


def _normalised(picture: Image.Image, data: bytes) -> Image.Image:
    """An 8-bit picture of mode L or RGB."""
    if picture.format == "PNG" and picture.mode not in ("P", "PA"):
        picture = _eight_bits(picture, data[24])
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture if picture.mode == "L" else picture.convert("L" if picture.mode == "1" else "RGB")


def _eight_bits(picture: Image.Image, depth: int) -> Image.Image:
    """A PNG of any depth in 8 bits, and with it its transparent colour, which Pillow keeps in the depth of the file."""
    key = picture.info.pop("transparency", None)
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8))
    if key is not None:
        values = [
            value >> 8 if depth == 16 else value * 255 // (2**depth - 1)
            for value in (key if isinstance(key, tuple) else (key,))
        ]
        picture.info["transparency"] = tuple(values) if isinstance(key, tuple) else values[0]
    return picture


def _shrunk(pixels: Pixels, store_size: int) -> Pixels:
    shorter = min(pixels.shape[:2])
    if shorter <= store_size:
        return pixels
    height, width = (round(side * store_size / shorter) for side in pixels.shape[:2])
    return codec.from_pillow(codec.to_pillow(pixels).resize((width, height), Image.Resampling.BICUBIC))


def _encoded(pixels: Pixels, encoding: str, was_jpeg: bool) -> bytes:
    if encoding == "raw":
        return pixels.tobytes()
    if encoding == "as-found" and was_jpeg:
        return codec.encode_jpeg(pixels, COPY_QUALITY, "444")
    if encoding.startswith("jpeg:"):
        return codec.encode_jpeg(pixels, int(encoding.removeprefix("jpeg:")), "420")
    return codec.encode_png(pixels)
