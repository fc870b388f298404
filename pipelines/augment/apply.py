"""Parameters x images, on the device: one batched bilinear gather, then one pass over the pixels for all the rest."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from pipelines.spec import AugmentSpec

LOWEST = -1e30
BITS = (0, 8, 16)  # where a packed pixel has its channels


def augmented(batch: Any, spec: AugmentSpec | None = None) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Applies the parameters that a batch carries: warp, colour, erasing, then mixing with the neighbour.

    Args:
        batch: `image` uint8 `[B, H, W, C]`, and of `affine`, `colour`, `erase`, `mix`, `cut` those that were drawn
            (see `pipelines.records.Batch`). With `mix` or `cut`, B is even.
        spec: What lies beyond the edge, and in erased boxes; and the size of what comes out.

    Returns:
        The images, float32 `[B, H, W, C]` in 0 to 255, not rounded, or of `spec.size`; and, where images are mixed, the share of
        each image itself in what it became, float32 `[B]`. The rest is its neighbour's (see `neighbours`).
    """
    spec = spec or AugmentSpec()
    images = batch["image"]
    if "affine" in batch:
        images = warp(images, batch["affine"], spec.fill, spec.fill_value, spec.size)
    changes = {name: batch[name] for name in ("colour", "erase", "mix", "cut") if name in batch}
    if not changes:
        return tf.cast(images, tf.float32), None
    return _changed(images, changes, spec.fill_value)


def neighbours(values: tf.Tensor) -> tf.Tensor:
    """Swaps places 2i and 2i + 1 of a batch, `[B, ...]` with B even: who an image is mixed with."""
    pairs = tf.reshape(values, [-1, 2, *values.shape[1:]])
    return tf.reshape(tf.reverse(pairs, [1]), [-1, *values.shape[1:]])


def warp(
    images: tf.Tensor,
    affine: tf.Tensor,
    fill: str = "nearest",
    fill_value: float = 0.0,
    size: tuple[int, int] | None = None,
) -> tf.Tensor:
    """Warps every image of a batch by its own affine matrix, bilinearly. The identity changes no bit.

    Beyond the edge lies, in the names of SciPy's modes: with `nearest` the nearest pixel (`nearest`), with
    `reflect` the image mirrored at the outer edge of its pixels (`reflect`), with `wrap` the image again
    (`grid-wrap`), with `constant` `fill_value`, which edge pixels blend into (`grid-constant`).

    Compiled by XLA, which makes one loop of it. It can be called from inside any other `tf.function`
    and from a replica of a distribution strategy.

    Args:
        images: uint8 or floating, `[B, H, W, C]`; H, W and C static.
        affine: float32 `[B, 2, 3]`, output to input in the unit square (see `pipelines.augment.geometry`).
        fill: What lies beyond the edge.
        fill_value: The value of every channel there, with `constant`.
        size: Height and width of the result; None for those of the input.

    Returns:
        float32 `[B, *size, C]` on the scale of the input, not rounded.
    """
    size = size or (images.shape[1], images.shape[2])
    if images.dtype == tf.uint8 and images.shape[-1] == len(BITS):
        images = _packed(images)
    return _warped(images, affine, fill, fill_value, size)


@tf.function(jit_compile=True)
def _packed(images: tf.Tensor) -> tf.Tensor:
    """Colours, uint8 `[B, H, W, 3]`, as one int32 a pixel, `[B, H, W]`, which a gather loads at once; compiled apart, to be done once."""
    red, green, blue = tf.unstack(tf.cast(images, tf.int32), axis=-1)
    return red + green * 2 ** BITS[1] + blue * 2 ** BITS[2]


@tf.function(jit_compile=True)
def _warped(
    images: tf.Tensor, affine: tf.Tensor, fill: str, fill_value: float, size: tuple[int, int]
) -> tf.Tensor:
    """See `warp`; takes packed pixels as well, int32 `[B, H, W]`."""
    height, width = images.shape[1:3]
    x, y = _sources(affine, height, width, size)  # [B, *size] in pixels, 0 is the centre of the first
    x0, y0 = tf.floor(x), tf.floor(y)
    right, below = (x - x0)[..., None], (y - y0)[..., None]  # the shares of the pixels to the right and below
    x0, y0 = tf.cast(x0, tf.int32), tf.cast(y0, tf.int32)
    pixels = tf.reshape(images, [-1, height * width, *images.shape[3:]])
    if images.dtype == tf.int32:  # XLA unpacks, [B, HW] -> [B, HW, 3], only what is gathered
        pixels = tf.bitwise.right_shift(pixels[..., None], BITS) & 255

    def pixel(
        row: tf.Tensor, column: tf.Tensor
    ) -> tf.Tensor:  # gathered before the cast: a quarter of the memory
        place = _inside(row, height, fill) * width + _inside(column, width, fill)
        found = tf.cast(tf.gather(pixels, place, batch_dims=1), tf.float32)
        if fill != "constant":
            return found
        there = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        return tf.where(there[..., None], found, fill_value)

    upper = pixel(y0, x0) * (1 - right) + pixel(y0, x0 + 1) * right
    lower = pixel(y0 + 1, x0) * (1 - right) + pixel(y0 + 1, x0 + 1) * right
    return upper * (1 - below) + lower * below


def _sources(
    affine: tf.Tensor, height: int, width: int, size: tuple[int, int]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Where in an input of `height` and `width` every pixel of an output of `size` comes from, `[B, *size]` each.

    The unit square is scaled to pixels before anything is multiplied, so that the identity, flips and whole
    shifts land on pixel centres exactly and blend nothing.
    """
    columns = (tf.range(size[1], dtype=tf.float32) + 0.5) * (width / size[1])  # in pixels of the input
    rows = ((tf.range(size[0], dtype=tf.float32) + 0.5) * (height / size[0]))[:, None]
    a, b, c, d, e, f = (affine[:, i, j, None, None] for i in (0, 1) for j in (0, 1, 2))
    x = _rounded(a * columns) + _rounded(b * (width / height) * rows) + _rounded(c * width) - 0.5
    y = _rounded(d * (height / width) * columns) + _rounded(e * rows) + _rounded(f * height) - 0.5
    return x, y


def _rounded(product: tf.Tensor) -> tf.Tensor:
    """The product itself, which no compiler may fuse with the addition that follows.

    XLA may compute a place twice, in two loops. Were it fused in one of them only, the pixel found in one
    and the share of its neighbour found in the other would not belong together.
    """
    return tf.maximum(product, LOWEST)


def _inside(place: tf.Tensor, size: int, fill: str) -> tf.Tensor:
    """The place inside the image that stands for any place."""
    if fill == "wrap":
        return tf.math.floormod(place, size)
    if fill == "reflect":
        place = tf.math.floormod(place, 2 * size)  # a period holds the image and its mirror image
        return tf.minimum(place, 2 * size - 1 - place)
    return tf.clip_by_value(place, 0, size - 1)


@tf.function(jit_compile=True)
def _changed(
    images: tf.Tensor, changes: dict[str, tf.Tensor], fill_value: float
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Colour, erasing and mixing: images `[B, H, W, C]` to float32, and the share of each image itself, `[B]`."""
    _, height, width, _ = images.shape
    images, share = tf.cast(images, tf.float32), None
    if "colour" in changes:
        images = _coloured(images, changes["colour"])
    if "erase" in changes:
        images = tf.where(_mask(changes["erase"], height, width)[..., None], fill_value, images)
    before = images
    if "mix" in changes:
        share = changes["mix"]
        own = share[:, None, None, None]
        images = own * before + (1 - own) * neighbours(before)
    if "cut" in changes:
        mask = _mask(changes["cut"], height, width)
        left = 1 - tf.reduce_mean(
            tf.cast(mask, tf.float32), axis=(1, 2)
        )  # whole pixels: what is seen, not what was drawn
        share = left if share is None else share * left
        images = tf.where(mask[..., None], neighbours(before), images)
    return images, share


def _coloured(images: tf.Tensor, colour: tf.Tensor) -> tf.Tensor:
    """The linear map of each image, `[B, C, C + 1]`, clipped to 0 to 255."""
    *linear, offset = tf.unstack(
        colour[:, None, None], axis=-1
    )  # [B, 1, 1, C] each: the share of one channel in all
    channels = tf.split(images, len(linear), axis=-1)  # [B, H, W, 1] each
    return tf.clip_by_value(
        tf.add_n([row * channel for row, channel in zip(linear, channels, strict=True)]) + offset, 0.0, 255.0
    )


def _mask(boxes: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Whether the centre of a pixel lies in its image's box `(ymin, xmin, ymax, xmax)`, bool `[B, H, W]`."""
    top, left, bottom, right = (boxes[:, i, None, None] for i in range(4))
    y = ((tf.range(height, dtype=tf.float32) + 0.5) / height)[:, None]
    x = (tf.range(width, dtype=tf.float32) + 0.5) / width
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)
