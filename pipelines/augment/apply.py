"""Parameters x images, on the device: one batched bilinear gather."""

from __future__ import annotations

import tensorflow as tf


@tf.function(jit_compile=True)
def warp(images: tf.Tensor, affine: tf.Tensor) -> tf.Tensor:
    """Warps every image of a batch by its own affine matrix; beyond the edge lies the nearest pixel.

    Compiled by XLA, which makes one loop of it. It can be called from inside any other `tf.function`
    and from a replica of a distribution strategy.

    Args:
        images: uint8 or floating, `[B, H, W, C]`; H, W and C static.
        affine: float32 `[B, 2, 3]`, output to input in the unit square (see `pipelines.augment.draw`).

    Returns:
        float32 `[B, H, W, C]` on the scale of the input, not rounded.
    """
    _, height, width, channels = images.shape
    x, y = _sources(affine, height, width)  # [B, H, W] in pixels, 0 is the centre of the first
    x0, y0 = tf.floor(x), tf.floor(y)
    right, below = (x - x0)[..., None], (y - y0)[..., None]  # the shares of the pixels to the right and below
    x0, y0 = tf.cast(x0, tf.int32), tf.cast(y0, tf.int32)
    x1, y1 = tf.minimum(x0 + 1, width - 1), tf.minimum(y0 + 1, height - 1)
    pixels = tf.reshape(images, [-1, height * width, channels])

    def pixel(row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:  # gathered before the cast: uint8 is a quarter of the memory
        return tf.cast(tf.gather(pixels, row * width + column, batch_dims=1), tf.float32)

    upper = pixel(y0, x0) * (1 - right) + pixel(y0, x1) * right
    lower = pixel(y1, x0) * (1 - right) + pixel(y1, x1) * right
    return upper * (1 - below) + lower * below


def _sources(affine: tf.Tensor, height: int, width: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Where every output pixel comes from, `[B, H, W]` each, clamped to the image.

    The unit square is scaled to pixels before anything is multiplied, so that the identity, flips and whole
    shifts land on pixel centres exactly and blend nothing.
    """
    columns = tf.range(width, dtype=tf.float32) + 0.5
    rows = (tf.range(height, dtype=tf.float32) + 0.5)[:, None]
    a, b, c, d, e, f = (affine[:, i, j, None, None] for i in (0, 1) for j in (0, 1, 2))
    x = a * columns + b * (width / height) * rows + c * width - 0.5
    y = d * (height / width) * columns + e * rows + f * height - 0.5
    return tf.clip_by_value(x, 0.0, width - 1.0), tf.clip_by_value(y, 0.0, height - 1.0)
