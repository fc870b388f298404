"""Fits decoded images to the size of a model inside a graph, by operations that every export format has.

The results are those of `pipelines.input.tfdata`: the same parts, cut in whole pixels, the same filters and
the same rounding. Only the last bits of the filters differ, and with them a level of a pixel now and then.
"""

from __future__ import annotations

import tensorflow as tf

from pipelines.spec import DataSpec

Size = tuple[tf.Tensor, tf.Tensor]  # height and width, int32 scalars


def fit_images(images: tf.Tensor, data: DataSpec) -> tf.Tensor:
    """Fits images of one size to the size of a model, see `pipelines.input.geometry.place_images`.

    Args:
        images: uint8 `[B, h, w, C]`.
        data: Size of the result, and the way to fit an image into it.

    Returns:
        uint8 `[B, H, W, C]`.
    """
    pixels = tf.cast(images, tf.float32)
    sides = _get_size(pixels)
    size = (tf.constant(data.image_size[0]), tf.constant(data.image_size[1]))
    if data.fit == "crop":
        pixels = _cut_center(pixels, _choose_window(sides, size, data.resize))
    if data.fit == "pad":
        target = _choose_target(sides, size)
        fitted = _pad(_resize(pixels, target, data.antialias), size)
    else:
        fitted = _resize(pixels, size, data.antialias)
    # The shape is static from here on. TFLite has no `tf.ensure_shape`.
    return tf.reshape(tf.cast(fitted + 0.5, tf.uint8), (-1, *data.image_size, data.channels))


def _get_size(pixels: tf.Tensor) -> Size:
    shape = tf.shape(pixels)
    return shape[1], shape[2]


def _choose_window(sides: Size, size: Size, resize: int | None) -> Size:
    """Returns height and width of the central part that becomes the result."""
    if resize is not None:
        shorter = tf.minimum(*sides)
        window = (_divide(size[0] * shorter, resize), _divide(size[1] * shorter, resize))
    else:
        is_whole_height = sides[0] * size[1] <= sides[1] * size[0]
        window = (
            tf.where(is_whole_height, sides[0], _divide(size[0] * sides[1], size[1])),
            tf.where(is_whole_height, _divide(size[1] * sides[0], size[0]), sides[1]),
        )
    return _limit(window, sides)


def _choose_target(sides: Size, size: Size) -> Size:
    """Returns height and width of the largest part of the result with the proportions of the image."""
    is_whole_height = size[0] * sides[1] <= size[1] * sides[0]
    target = (
        tf.where(is_whole_height, size[0], _divide(sides[0] * size[1], sides[1])),
        tf.where(is_whole_height, _divide(sides[1] * size[0], sides[0]), size[1]),
    )
    return _limit(target, size)


def _divide(numerator: tf.Tensor, denominator: tf.Tensor | int) -> tf.Tensor:
    """Divides positive integers and rounds to the nearest, halves to the even one, as `numpy.rint` does."""
    doubled = 2 * numerator + denominator
    quotient = doubled // (2 * denominator)
    is_half = tf.equal(doubled - quotient * 2 * denominator, 0)
    is_odd = tf.equal(quotient - quotient // 2 * 2, 1)
    return quotient - tf.cast(tf.logical_and(is_half, is_odd), tf.int32)


def _limit(inner: Size, outer: Size) -> Size:
    """Limits a size to at least one pixel and at most another size."""
    return tf.clip_by_value(inner[0], 1, outer[0]), tf.clip_by_value(inner[1], 1, outer[1])


def _cut_center(pixels: tf.Tensor, window: Size) -> tf.Tensor:
    """Cuts the central part of some size out of images `[B, h, w, C]`."""
    height, width = _get_size(pixels)
    top = (height - window[0]) // 2
    left = (width - window[1]) // 2
    return tf.slice(pixels, tf.stack([0, top, left, 0]), tf.stack([-1, window[0], window[1], -1]))


def _pad(pixels: tf.Tensor, size: Size) -> tf.Tensor:
    """Puts images `[B, h, w, C]` in the middle of black ones of some size."""
    height, width = _get_size(pixels)
    top = (size[0] - height) // 2
    left = (size[1] - width) // 2
    rows = tf.stack([top, size[0] - height - top])
    columns = tf.stack([left, size[1] - width - left])
    nothing = tf.zeros(2, tf.int32)
    return tf.pad(pixels, tf.stack([nothing, rows, columns, nothing]))


def _resize(pixels: tf.Tensor, size: Size, antialias: bool) -> tf.Tensor:
    """Resizes float images `[B, h, w, C]`: bilinear, half-pixel centers."""
    if not antialias:
        return tf.raw_ops.ResizeBilinear(images=pixels, size=tf.stack(size), half_pixel_centers=True)
    sides = _get_size(pixels)
    rows = _build_triangle_filter(sides[0], size[0])
    columns = _build_triangle_filter(sides[1], size[1])
    resized = tf.einsum("bhwc,yh->bywc", pixels, rows)
    return tf.einsum("bywc,xw->byxc", resized, columns)


def _build_triangle_filter(stored: tf.Tensor, resized: tf.Tensor) -> tf.Tensor:
    """Builds the antialiasing filter of one axis, the triangle of Pillow and of TensorFlow.

    Formats other than SavedModel have no operation for it, so it is a matrix product.

    Args:
        stored: Number of pixels of the image, an int32 scalar.
        resized: Number of pixels of the result, an int32 scalar.

    Returns:
        Weights, float32 `[resized, stored]`; every row sums to 1.
    """
    scale = tf.cast(stored, tf.float32) / tf.cast(resized, tf.float32)  # stored pixels for one of the result
    centers = (tf.cast(tf.range(resized), tf.float32) + 0.5) * scale
    positions = tf.cast(tf.range(stored), tf.float32) + 0.5
    distances = tf.abs(positions[None, :] - centers[:, None]) / tf.maximum(scale, 1.0)
    weights = tf.maximum(1.0 - distances, 0.0)
    return weights / tf.reduce_sum(weights, axis=1, keepdims=True)
