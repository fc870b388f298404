"""Warps every image of a batch by its own affine matrix: one bilinear gather on the device."""

from __future__ import annotations

import tensorflow as tf

LOWEST = -1e30
CHANNEL_BITS = (0, 8, 16)  # position of each channel in a packed pixel


def warp(
    images: tf.Tensor,
    affine: tf.Tensor,
    fill: str = "nearest",
    fill_value: float = 0.0,
    size: tuple[int, int] | None = None,
) -> tf.Tensor:
    """Warps every image of a batch by its own affine matrix, bilinearly. The identity changes no bit.

    Modes of `fill`, with the equivalent modes of `scipy.ndimage`:

    - `nearest` repeats the nearest pixel (`nearest`).
    - `reflect` mirrors the image at the outer edge of its pixels (`reflect`).
    - `wrap` repeats the image (`grid-wrap`).
    - `constant` shows `fill_value`, which edge pixels blend into (`grid-constant`).

    XLA compiles it to a single loop. It can be called from inside any other `tf.function` and from a replica
    of a distribution strategy.

    Args:
        images: uint8 or floating, `[B, H, W, C]`; H, W and C static.
        affine: float32 `[B, 2, 3]`, output to input in the unit square (see `pipelines.augment.geometry`).
        fill: Mode for positions beyond the edge, see above.
        fill_value: Value of every channel beyond the edge, with `constant`.
        size: Height and width of the result; None for those of the input.

    Returns:
        float32 `[B, *size, C]` on the scale of the input, not rounded.
    """
    size = size or (images.shape[1], images.shape[2])
    if images.dtype == tf.uint8 and images.shape[-1] == len(CHANNEL_BITS):
        images = _pack(images)
    return _warp(images, affine, fill, fill_value, size)


@tf.function(jit_compile=True, autograph=False)
def _pack(images: tf.Tensor) -> tf.Tensor:
    """Packs colours, uint8 `[B, H, W, 3]`, into one int32 per pixel, `[B, H, W]`, for one load per gather.

    Compiled apart from the warp, which would otherwise pack again for each of the four neighbouring pixels.
    """
    red, green, blue = tf.unstack(tf.cast(images, tf.int32), axis=-1)
    return red + green * 2 ** CHANNEL_BITS[1] + blue * 2 ** CHANNEL_BITS[2]


@tf.function(jit_compile=True, autograph=False)
def _warp(
    images: tf.Tensor, affine: tf.Tensor, fill: str, fill_value: float, size: tuple[int, int]
) -> tf.Tensor:
    """See `warp`; also takes packed pixels, int32 `[B, H, W]`."""
    height, width = images.shape[1:3]
    x, y = _source_positions(affine, height, width, size)  # [B, *size] in pixels
    left = tf.floor(x)
    top = tf.floor(y)
    right_share = (x - left)[..., None]
    lower_share = (y - top)[..., None]
    column = tf.cast(left, tf.int32)
    row = tf.cast(top, tf.int32)
    pixels = tf.reshape(images, [-1, height * width, *images.shape[3:]])
    if images.dtype == tf.int32:  # XLA unpacks only what is gathered, [B, HW] -> [B, HW, 3]
        pixels = tf.bitwise.right_shift(pixels[..., None], CHANNEL_BITS) & 255

    def gather(row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
        """Gathers before the cast, which takes a quarter of the memory; float32 `[B, *size, C]`."""
        index = _fold_inside(row, height, fill) * width + _fold_inside(column, width, fill)
        values = tf.cast(tf.gather(pixels, index, batch_dims=1), tf.float32)
        if fill != "constant":
            return values
        is_inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        return tf.where(is_inside[..., None], values, fill_value)

    upper = gather(row, column) * (1 - right_share) + gather(row, column + 1) * right_share
    lower = gather(row + 1, column) * (1 - right_share) + gather(row + 1, column + 1) * right_share
    return upper * (1 - lower_share) + lower * lower_share


def _source_positions(
    affine: tf.Tensor, height: int, width: int, size: tuple[int, int]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the position in an input of `height` and `width` that each pixel of an output of `size` shows.

    The unit square is scaled to pixels before anything is multiplied, so that the identity, flips and whole
    shifts land exactly on pixel centers and blend nothing.

    Returns:
        x and y, `[B, *size]` each, in pixels; 0 is the center of the first pixel.
    """
    columns = (tf.range(size[1], dtype=tf.float32) + 0.5) * (width / size[1])  # in pixels of the input
    rows = ((tf.range(size[0], dtype=tf.float32) + 0.5) * (height / size[0]))[:, None]
    a, b, c, d, e, f = (affine[:, i, j, None, None] for i in (0, 1) for j in (0, 1, 2))
    x = _prevent_fusion(a * columns) + _prevent_fusion(b * (width / height) * rows)
    x = x + _prevent_fusion(c * width) - 0.5
    y = _prevent_fusion(d * (height / width) * columns) + _prevent_fusion(e * rows)
    y = y + _prevent_fusion(f * height) - 0.5
    return x, y


def _prevent_fusion(product: tf.Tensor) -> tf.Tensor:
    """Returns the product itself, in a form that no compiler fuses with the addition that follows.

    XLA may compute a position twice, in two loops. If only one of them fused, the pixel found in one and the
    share of its neighbour found in the other would not belong together.
    """
    return tf.maximum(product, LOWEST)


def _fold_inside(position: tf.Tensor, size: int, fill: str) -> tf.Tensor:
    """Maps any position along a side to the position inside the image whose pixel it shows."""
    if fill == "wrap":
        return tf.math.floormod(position, size)
    if fill == "reflect":
        position = tf.math.floormod(position, 2 * size)  # a period holds the image and its mirror image
        return tf.minimum(position, 2 * size - 1 - position)
    return tf.clip_by_value(position, 0, size - 1)
