"""Stored images to uint8 batches with tf.data, on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.input.memory import keep_freed_memory
from pipelines.spec import DataSpec

Record = dict[str, Any]

PREFETCH = 4  # batches ready before they are asked for
AT_WORK = (
    2  # batches being decoded at a time, so that the cores have work while the last images of one finish
)
RATIOS = (1, 2, 4, 8)  # what a JPEG's decoder can divide height and width by, leaving out part of the work
BLACK = bytes.fromhex(  # a PNG file of one black pixel, which becomes a black image of any size
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c636000000002000148afa4710000000049454e44ae426082"
)
GREY = (9797, 19234, 3737)  # of R, G and B, in 2**15: what the decoders make of a PNG, to the bit


def decode(image: tf.Tensor, data: DataSpec, ratio: tf.Tensor | None = None) -> tf.Tensor:
    """Decodes one JPEG or PNG and resizes it: bilinear, half-pixel centres, no antialiasing, rounded.

    Args:
        image: String scalar; the format is recognised by its first bytes.
        data: Size and channels wanted. With one channel, colours become grey the way the decoder does it.
        ratio: int32 scalar, which of `RATIOS` a JPEG is decoded at; None decodes every pixel.

    Returns:
        uint8 `[H, W, C]`.

    Raises:
        tf.errors.InvalidArgumentError: The image cannot be decoded.
    """

    def decoded_at(ratio: int) -> tf.Tensor:
        # decode_jpeg reads PNG as well. Its default DCT is off by up to 4 levels from the accurate one.
        return tf.io.decode_jpeg(image, channels=data.channels, ratio=ratio, dct_method="INTEGER_ACCURATE")

    if ratio is None:
        return _resize(decoded_at(1), data.image_size)
    return _resize(tf.switch_case(ratio, [lambda at=at: decoded_at(at) for at in RATIOS]), data.image_size)


def from_raw(image: tf.Tensor, shape: tf.Tensor, data: DataSpec) -> tf.Tensor:
    """Resizes raw pixels, which lie in `image` row by row, as `decode` does.

    Args:
        image: String scalar.
        shape: int32 `[3]`: height, width and channels, 1 or 3, of the stored image.
        data: Size and channels wanted.

    Returns:
        uint8 `[H, W, C]`.

    Raises:
        tf.errors.InvalidArgumentError: The pixels are not as many as the shape says.
    """
    pixels = tf.reshape(tf.io.decode_raw(image, tf.uint8), shape)  # [h, w, c]
    if data.channels == 3:
        return _fitted(tf.tile(pixels, [1, 1, 3 // shape[2]]), data)
    weights = tf.cond(shape[2] == 3, lambda: tf.constant(GREY), lambda: tf.constant([sum(GREY)]))
    grey = tf.reduce_sum(tf.cast(pixels, tf.int32) * weights, axis=2, keepdims=True) // sum(GREY)  # [h, w, 1]
    return _fitted(tf.cast(grey, tf.uint8), data)


def decoded_batches(
    records: Callable[[], Iterable[Record]],
    signature: dict[str, tf.TensorSpec],
    data: DataSpec,
    encoding: str,
    steps: int,
) -> tf.data.Dataset:
    """Batches of stored images to batches of decoded ones, in the same order.

    Python runs once per batch and only hands over bytes; images are decoded one by one on all cores.

    Args:
        records: Returns a fresh iterator over `steps` batches: `encoded`, a list of at most B stored images as bytes-like objects,
            `shape` int32 `[B, 3]` of the stored images, and arrays `[B, ...]`, among them `row`. Places beyond the images are padding.
        signature: Shapes `[B, ...]` and dtypes of the arrays of `records` but `encoded` and `shape`.
        data: Size and channels wanted, and whether exactly or fast.
        encoding: How the images are stored (see `pipelines.spec.ShardSpec`); only `raw` makes a difference.
        steps: How many batches there are.

    Returns:
        Batches with `image` uint8 `[B, H, W, C]`, black where there is padding, and the arrays as they were; every shape is static.
    """
    keep_freed_memory()
    batch = signature["row"].shape[0]
    stored = {"encoded": tf.TensorSpec((batch,), tf.string), "shape": tf.TensorSpec((batch, 3), tf.int32)}

    def tensors() -> Iterable[Record]:
        for record in records():
            real = len(record["encoded"])
            images = [
                *map(bytes, record["encoded"]),
                *[b"\0" if encoding == "raw" else BLACK] * (batch - real),
            ]
            shapes = np.ones((batch, 3), np.int32)
            shapes[:real] = record["shape"][:real]
            yield {**record, "encoded": np.array(images, object), "shape": shapes}

    @tf.autograph.experimental.do_not_convert
    def decoded(record: Record) -> Record:
        images = _decode_each(record["encoded"], record["shape"], data, encoding)
        images.set_shape(
            (batch, *data.image_size, data.channels)
        )  # it may have been traced for batches of any size
        return {"image": images, **{name: record[name] for name in signature}}

    dataset = tf.data.Dataset.from_generator(tensors, output_signature={**signature, **stored})
    return finished(dataset.map(decoded, num_parallel_calls=AT_WORK, deterministic=True), steps)


def finished(dataset: tf.data.Dataset, steps: int) -> tf.data.Dataset:
    """A dataset of batches that knows its length, works ahead, and leaves sharing out to `Batches`."""
    options = tf.data.Options()
    options.autotune.enabled = False  # ending an epoch would wait for the tuner's thread, for seconds
    options.threading.max_intra_op_parallelism = 1  # the images are what runs in parallel
    # every worker already reads its own slice
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return (
        dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(PREFETCH).with_options(options)
    )


def decode_each(images: tf.Tensor, shapes: tf.Tensor, data: DataSpec, encoding: str) -> tf.Tensor:
    """Decodes n images in parallel, inside a graph, without an element of tf.data for each.

    Args:
        images: Strings `[n]`.
        shapes: int32 `[n, 3]`: height, width and channels of the stored images.
        data: Size and channels wanted, and whether exactly or fast.
        encoding: How the images are stored.

    Returns:
        uint8 `[n, H, W, C]`.

    Raises:
        tf.errors.InvalidArgumentError: An image cannot be decoded.
    """

    def decoded(stored: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        image, shape = stored
        if encoding == "raw":
            return from_raw(image, shape, data)
        return decode(image, data, ratio_of(image, shape, data) if data.decode == "fast" else None)

    signature = tf.TensorSpec((*data.image_size, data.channels), tf.uint8)
    return tf.map_fn(decoded, (images, shapes), fn_output_signature=signature, parallel_iterations=cores())


def ratio_of(image: tf.Tensor, shape: tf.Tensor, data: DataSpec) -> tf.Tensor:
    """Which of `RATIOS` leaves an image nearest to the size wanted and not smaller in height or width; 0 where it is no JPEG.

    Args:
        image: String scalar.
        shape: int32 `[3]`: height, width and channels of the stored image.
        data: The size wanted.

    Returns:
        int32 scalar.
    """
    ratios = tf.constant(RATIOS[1:])[:, None]
    large = tf.reduce_all(-(-shape[:2] // ratios) >= data.image_size, axis=1)  # a decoder rounds up
    return tf.where(tf.strings.substr(image, 0, 2) == b"\xff\xd8", tf.reduce_sum(tf.cast(large, tf.int32)), 0)


def decode_all(images: Sequence[Any], shapes: np.ndarray, data: DataSpec, encoding: str) -> np.ndarray:
    """Decodes some stored images on all cores.

    Returns:
        uint8 `[n, H, W, C]`.

    Raises:
        tf.errors.InvalidArgumentError: One of them cannot be decoded (`first_undecodable` tells which).
    """
    stored = tf.constant([bytes(image) for image in images], tf.string, (len(images),))
    return _decode_each(stored, tf.constant(shapes, tf.int32, (len(images), 3)), data, encoding).numpy()


# one for all, because tracing it takes as long as decoding a hundred photos: here, and at the start of every epoch
_decode_each = tf.function(decode_each, autograph=False, reduce_retracing=True)


def first_undecodable(images: Sequence[Any], shapes: np.ndarray, data: DataSpec, encoding: str) -> int | None:
    """Index of the first image that cannot be decoded, or None."""
    stored = (np.array([bytes(image) for image in images], object), np.asarray(shapes, np.int32))
    dataset = tf.data.Dataset.from_tensor_slices(stored)
    dataset = dataset.map(
        lambda image, shape: decode_each(image[None], shape[None], data, encoding), num_parallel_calls=cores()
    )
    good = 0
    try:
        for _ in dataset:
            good += 1
    except tf.errors.InvalidArgumentError:
        return good  # results come in order, so the next one is at fault
    return None


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fitted(pixels: tf.Tensor, data: DataSpec) -> tf.Tensor:
    """Raw pixels are often stored at the size wanted; asking costs little beside resizing them to it, but not beside decoding."""
    fits = tf.reduce_all(tf.shape(pixels)[:2] == data.image_size)
    pixels = tf.cond(fits, lambda: pixels, lambda: _resize(pixels, data.image_size))
    return tf.ensure_shape(pixels, (*data.image_size, data.channels))


def _resize(pixels: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """The operation behind `tf.image.resize`, which adds twenty small ones to every image; what has the size already stays as it is."""
    resized = tf.raw_ops.ResizeBilinear(images=tf.expand_dims(pixels, 0), size=size, half_pixel_centers=True)
    return tf.squeeze(tf.cast(resized + 0.5, tf.uint8), 0)
