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
from pipelines.shards.headers import PNG, Header, read_plain_header
from pipelines.spec import ShardSpec

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")
MAX_PIXELS = 89_478_485  # 256 MiB of RGB
MAX_SIDE = 65_500  # limit of libjpeg; that of libpng is somewhat higher
ORIENTATION = 0x0112  # EXIF tag; values 2 to 8 ask for the picture to be turned or mirrored
COPY_QUALITY = 95  # quality of JPEGs that have to be normalised
FULL = "full"  # levels: the upper 8 of 16 bits
MAX_VALUE = 2**16 - 1
JPEG_START = b"\xff\xd8"
# Raw modes of Pillow, which keeps the byte of a value that comes first, or here the one that comes last.
LOW_BYTE_MODES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
END_OF_IMAGE = b"\xff\xd9"  # last marker of a JPEG
DARK_LIMIT = 2**12  # 16-bit values that are all below become 0 to 15 of 255

# Kinds of notices. The manifest counts the images of each.
COMPLETED_JPEG = "JPEG without its end marker, which was added"
IGNORED_ALPHA = "alpha channel that is zero everywhere, ignored"
DEEP = "more than 8 bits, reduced to 8"
DARK = "16-bit values below 4096, nearly black at --levels full"
CLIPPED = "16-bit values outside of --levels, clipped"
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
        notices: What was changed or is peculiar, in phrases that the manifest counts.
    """

    image: bytes
    shape: Shape
    pixel_sums: NDArray[np.int64] | None
    notices: tuple[str, ...] = ()


class DecodedImage(NamedTuple):
    """A normalised image.

    Attributes:
        pixels: uint8 `[H, W, C]`.
        data: Bytes that every decoder decodes to exactly these pixels; None if there are none yet.
        notices: What was changed, see `PreparedImage`.
    """

    pixels: Pixels
    data: bytes | None
    notices: tuple[str, ...]


def prepare_image(image: bytes, spec: ShardSpec) -> PreparedImage:
    """Decides how an image is stored, and decodes it completely, which proves that it can be read.

    With the encoding `as-found`, the bytes of JPEGs (greyscale or YCbCr, not rotated by EXIF) and of PNGs
    (8-bit greyscale or RGB) are kept if they need no resizing and decode without a warning. Any other image
    is normalised here, once, so that every decoder sees the same pixels:

    - rotated according to EXIF,
    - converted from CMYK or a palette to RGB,
    - blended with white where transparent, unless it is transparent everywhere,
    - reduced from 16 to 8 bits: the upper 8, or the values between two `levels`,
    - reduced to the first frame of an animation or of several pictures in one file.

    A JPEG that lacks nothing but its end marker gets one. Normalised JPEGs are stored as JPEG of quality 95
    without chroma subsampling, including those that decode with a warning (extraneous bytes, for example);
    all other images become PNG. The content decides the format, not the name of the file.

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

    decoded = _decode(data, header, spec.levels)
    pixels = decoded.pixels
    if spec.store_size is not None:
        pixels = _shrink(pixels, spec.store_size)
    if may_keep and decoded.data is not None:
        image = decoded.data
    else:
        image = _encode(pixels, spec.encoding, data.startswith(JPEG_START))
    height, width, channels = pixels.shape
    pixel_sums = None if spec.check == "header" else codec.sum_pixels(pixels)
    return PreparedImage(image, (height, width, channels), pixel_sums, decoded.notices)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f"more than {MAX_PIXELS} pixels: {width} x {height}")
    if max(width, height) > MAX_SIDE:
        raise UnreadableImageError(f"more than {MAX_SIDE} pixels per side: {width} x {height}")


def _decode(data: bytes, header: Header | None, levels: str) -> DecodedImage:
    if header is not None and header.is_jpeg:
        pixels = codec.decode_jpeg(data, header.shape[2])
        if pixels is not None:
            return DecodedImage(pixels, data, ())
        completed = _complete_jpeg(data)
        pixels = codec.decode_jpeg(completed, header.shape[2])
        if pixels is not None:
            return DecodedImage(pixels, completed, (COMPLETED_JPEG,))
    try:
        pixels, notices = _decode_with_pillow(data, levels)
    except OSError:
        completed = _complete_jpeg(data)
        if not data.startswith(JPEG_START) or codec.decode_jpeg(completed, 3) is None:
            raise
        pixels, notices = _decode_with_pillow(completed, levels)
        notices = (COMPLETED_JPEG, *notices)
    is_plain_png = header is not None and not header.is_jpeg
    return DecodedImage(pixels, data if is_plain_png else None, notices)


def _complete_jpeg(data: bytes) -> bytes:
    """Returns a JPEG with an end marker; decoders report whether more than that is missing."""
    return data.removesuffix(END_OF_IMAGE[:1]) + END_OF_IMAGE


def _decode_with_pillow(data: bytes, levels: str) -> tuple[Pixels, tuple[str, ...]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as those about unusual metadata
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            _check_size(*picture.size)
            turn = TURNS.get(_read_orientation(picture))
            notices = _describe_frames(data)
            picture.load()
            normalised, more_notices = _normalise(picture, data, levels)
    if turn is not None:
        normalised = normalised.transpose(turn)
    return codec.from_pillow(normalised), (*notices, *more_notices)


def _describe_frames(data: bytes) -> tuple[str, ...]:
    """Returns a notice if a file holds more than one picture."""
    # In a file of its own, because looking for a second frame may move to it.
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        try:
            is_animated = getattr(picture, "is_animated", False)
        except DAMAGE_ERRORS:  # in a later frame, which is not used
            is_animated = True
        return (f"first frame used ({picture.format})",) if is_animated else ()


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


def _normalise(picture: Image.Image, data: bytes, levels: str) -> tuple[Image.Image, tuple[str, ...]]:
    """Converts a picture to 8 bits and mode L or RGB, and returns notices on what was changed."""
    notices: list[str] = []
    if picture.format == "PNG" and picture.mode not in ("P", "PA"):
        picture = _reduce_depth(picture, data, levels, notices)
    bands = picture.getbands()
    if "A" in bands and picture.getchannel("A").getextrema() == (0, 0):
        notices.append(IGNORED_ALPHA)
        return picture.convert("L" if bands[0] == "L" else "RGB"), tuple(notices)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB"), tuple(notices)
    if picture.mode != "L":
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    return picture, tuple(notices)


def _reduce_depth(picture: Image.Image, data: bytes, levels: str, notices: list[str]) -> Image.Image:
    """Converts a PNG of any bit depth to 8 bits, and also its transparent colour, unlike Pillow.

    Args:
        picture: Picture as Pillow loaded it, which keeps 16 bits of greyscale only.
        data: Content of the file.
        levels: Values that become 0 and 255, `MIN:MAX`; `full` for the upper 8 bits.
        notices: List that notices on the depth are added to.
    """
    depth = data[24]
    key = picture.info.pop("transparency", None)
    if depth == 16:
        notices.append(DEEP)
        if levels == FULL and _find_maximum(picture) < DARK_LIMIT:
            notices.append(DARK)
    if picture.mode.startswith("I"):
        picture = Image.fromarray(_reduce_values(np.asarray(picture).astype(np.int64), levels, notices))
    elif depth == 16 and levels != FULL:
        values = _read_deep_colours(picture, data)  # [H, W, 3 or 4]
        pixels = _reduce_values(values[..., :3], levels, notices)
        alpha = (values[..., 3:] >> 8).astype(np.uint8)
        picture = Image.fromarray(np.concatenate([pixels, alpha], axis=2))
    if isinstance(key, tuple):
        picture.info["transparency"] = tuple(_reduce_value(value, depth, levels) for value in key)
    elif key is not None:
        picture.info["transparency"] = _reduce_value(key, depth, levels)
    return picture


def _reduce_values(values: NDArray[np.int64], levels: str, notices: list[str]) -> Pixels:
    """Maps values of 16 bits to 8 bits, and notices those outside of the levels."""
    low, high = parse_levels(levels)
    if values.min() < low or values.max() > high:
        notices.append(CLIPPED)
    return _apply_levels(values, levels)


def _read_deep_colours(picture: Image.Image, data: bytes) -> NDArray[np.int64]:
    """Returns all 16 bits of the colours of a PNG, of which Pillow keeps the upper 8: int64 `[H, W, C]`.

    Raises:
        UnreadableImageError: The picture is greyscale with alpha.
    """
    with Image.open(io.BytesIO(data), formats=("PNG",)) as low_bytes:
        tiles = []
        for tile in low_bytes.tile:
            mode = LOW_BYTE_MODES.get(str(tile.args))
            if mode is None:
                raise UnreadableImageError("16-bit greyscale with alpha, which only --levels full can read")
            tiles.append(tile._replace(args=mode))
        low_bytes.tile = tiles
        low_bytes.load()
        return np.asarray(picture).astype(np.int64) << 8 | np.asarray(low_bytes).astype(np.int64)


def _find_maximum(picture: Image.Image) -> int:
    """Returns the largest value of a PNG of 16 bits; of colours, Pillow keeps the upper 8 bits only."""
    values = np.asarray(picture)
    if picture.mode.startswith("I"):
        return int(values.max())
    colours = values[..., :-1] if "A" in picture.getbands() else values  # [H, W, C]
    return int(colours.max()) << 8 | 0xFF


def parse_levels(levels: str) -> tuple[int, int]:
    """Returns the values that become 0 and 255."""
    if levels == FULL:
        return 0, MAX_VALUE
    low, _, high = levels.partition(":")
    return int(low), int(high)


def _apply_levels(values: NDArray[np.int64], levels: str) -> Pixels:
    """Maps values of 16 bits to 8 bits."""
    if levels == FULL:
        return (values >> 8).astype(np.uint8)
    low, high = parse_levels(levels)
    scaled = (np.clip(values, low, high) - low) * 255 / (high - low)
    return np.rint(scaled).astype(np.uint8)


def find_deep_maximum(image: bytes) -> int | None:
    """Returns the largest value of a PNG of 16 bits per value; None for any other image."""
    if not image.startswith(PNG) or image[24:25] != b"\x10":
        return None
    try:
        with Image.open(io.BytesIO(image), formats=("PNG",)) as picture:
            _check_size(*picture.size)
            picture.load()
            return _find_maximum(picture)
    except (UnreadableImageError, Image.DecompressionBombError, *DAMAGE_ERRORS):
        return None


def _reduce_value(value: int, depth: int, levels: str) -> int:
    if depth == 16:
        return int(_apply_levels(np.array([value]), levels)[0])
    return value * 255 // ((1 << depth) - 1)


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
