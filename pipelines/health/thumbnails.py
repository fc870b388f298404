"""Thumbnails and perceptual hashes: what the check of a shard set compares instead of whole images."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipelines.shards.codec import Pixels, from_pillow

SIDE = 32  # pixels; a thumbnail is square, whatever the shape of the image
FREQUENCIES = 12  # of the cosine transform, per direction: enough for the lowest 64
BITS = 64
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
JPEG = b"\xff\xd8"


def decode_image(image: bytes | memoryview, shape: Sequence[int], encoding: str) -> Pixels:
    """Decodes a stored image at full size.

    Args:
        image: Content of an image file, or raw pixels.
        shape: Height, width and channels of the image.
        encoding: Encoding of the shard set; `raw` for pixels.

    Returns:
        uint8 `[H, W, C]`.

    Raises:
        ValueError: The image cannot be decoded.
    """
    if encoding == "raw":
        return np.frombuffer(image, np.uint8).reshape(shape)
    if image[:2] == JPEG:
        return _decode_jpeg(image, shape[2], min_side=0)
    return _decode_with_pillow(image, shape[2])


def compute_thumbnail(
    image: bytes | memoryview, shape: Sequence[int], encoding: str, channels: int
) -> Pixels:
    """Shrinks a stored image to a square of `SIDE` pixels.

    A JPEG is decoded at a fraction of its size, down to an eighth, which takes half of the time. The fraction
    rounds width and height up; the area that is resized is the exact one, so that an image, its mirror image
    and copies of other sizes have nearly the same thumbnail.

    Args:
        image: Content of an image file, or raw pixels.
        shape: Height, width and channels of the image.
        encoding: Encoding of the shard set; `raw` for pixels.
        channels: 1 for grey, which is faster, or 3 for colour.

    Returns:
        uint8 `[SIDE, SIDE, channels]`.

    Raises:
        ValueError: The image cannot be decoded.
    """
    height, width, _ = shape
    if encoding != "raw" and image[:2] == JPEG:
        pixels = _decode_jpeg(image, channels, SIDE)
    else:
        pixels = decode_image(image, shape, encoding)
    mode = "L" if pixels.shape[2] == 1 else "RGB"
    size = (pixels.shape[1], pixels.shape[0])
    box = (0.0, 0.0, _scale_like(width, size[0]), _scale_like(height, size[1]))
    # Without a copy, unlike `Image.fromarray`
    picture = Image.frombuffer(mode, size, np.ascontiguousarray(pixels), "raw", mode, 0, 1)
    thumbnail = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box)
    if pixels.shape[2] != channels:
        thumbnail = thumbnail.convert("L" if channels == 1 else "RGB")
    return from_pillow(thumbnail)


def convert_to_grey(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Converts uint8 `[n, SIDE, SIDE, 3]` to luma, float32 `[n, SIDE, SIDE]`."""
    grey: NDArray[np.float32] = thumbnails.astype(np.float32) @ LUMA
    return grey


def compute_hashes(grey: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Computes a perceptual hash: the signs of the 64 lowest frequencies of the cosine transform.

    This is pHash (Zauner, 2010) with the sign instead of the comparison with the median, and with the lowest
    frequencies along diagonals. Similar images differ in few bits.

    Args:
        grey: float32 `[n, SIDE, SIDE]`.

    Returns:
        uint64 `[n]`.
    """
    coefficients = COSINES @ grey @ COSINES.T  # [n, FREQUENCIES, FREQUENCIES]
    return _pack(coefficients[:, VERTICAL, HORIZONTAL] > 0)


def mirror_hashes(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns the hashes of the mirror images: mirroring flips the sign of odd horizontal frequencies."""
    mirrored: NDArray[np.uint64] = hashes ^ MIRROR
    return mirrored


def normalize(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales thumbnails so that their dot product is their correlation.

    Args:
        grey: float32 `[n, SIDE, SIDE]`.

    Returns:
        float32 `[n, SIDE * SIDE]` with mean 0 and norm 1; zeros for a constant thumbnail.
    """
    flat = grey.reshape(len(grey), -1)
    centred = flat - flat.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    normalized: NDArray[np.float32] = np.divide(
        centred, norms, out=np.zeros_like(centred), where=norms > 1e-3
    )
    return normalized


def _decode_jpeg(image: bytes | memoryview, channels: int, min_side: int) -> Pixels:
    """Decodes a JPEG at the smallest fraction of its size that leaves `min_side` pixels; 0 for all of it."""
    colour_space = "RGB" if channels == 3 else "GRAY"
    try:
        return simplejpeg.decode_jpeg(  # type: ignore[no-any-return]
            image, colour_space, min_height=min_side, min_width=min_side, min_factor=1.0
        )
    except ValueError:
        return _decode_with_pillow(image, channels)


def _decode_with_pillow(image: bytes | memoryview, channels: int) -> Pixels:
    try:
        with Image.open(io.BytesIO(image)) as picture:
            return from_pillow(picture.convert("RGB" if channels == 3 else "L"))
    except (OSError, SyntaxError) as error:
        raise ValueError(str(error)) from None


def _scale_like(full: int, decoded: int) -> float:
    """Scales a side by the eighths that libjpeg has scaled it by, without its rounding up to whole pixels."""
    eighths = 8 * decoded // full
    return min(full * eighths / 8, decoded)


def _list_frequencies() -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Lists the 64 lowest frequencies but the mean: vertical and horizontal, by their sum."""
    frequencies = [(v, h) for v in range(FREQUENCIES) for h in range(FREQUENCIES)]
    frequencies.sort(key=lambda frequency: (sum(frequency), frequency))
    lowest = np.array(frequencies[1 : BITS + 1], np.intp)  # [64, 2]
    return lowest[:, 0], lowest[:, 1]


def _compute_cosines() -> NDArray[np.float32]:
    """Computes the cosines of the DCT-II, float32 `[FREQUENCIES, SIDE]`."""
    positions = np.arange(SIDE) + 0.5
    return np.cos(np.pi / SIDE * np.outer(np.arange(FREQUENCIES), positions)).astype(np.float32)


def _pack(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Packs bool `[n, 64]` into uint64 `[n]`."""
    packed = np.packbits(bits, axis=1, bitorder="little")  # [n, 8]
    return np.ascontiguousarray(packed).view(np.uint64)[:, 0]


COSINES = _compute_cosines()
VERTICAL, HORIZONTAL = _list_frequencies()
MIRROR = _pack((HORIZONTAL % 2 == 1)[None])[0]
