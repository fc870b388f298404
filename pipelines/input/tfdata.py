"""Encoded images to uint8 batches with tf.data, on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from pipelines.input.order import PADDING
from pipelines.records import Batch
from pipelines.spec import DataSpec

PREFETCH = 4  # batches ready before they are asked for


def decode(image: tf.Tensor, data: DataSpec) -> tf.Tensor:
    """Decodes one JPEG or PNG and resizes it: bilinear, half-pixel centres, no antialiasing, rounded.

    Args:
        image: String scalar; the format is recognised by its first bytes.
        data: Size and channels wanted. With one channel, colours become grey the way the decoder does it.

    Returns:
        uint8 `[H, W, C]`.

    Raises:
        tf.errors.InvalidArgumentError: The image cannot be decoded.
    """
    # decode_jpeg reads PNG as well. Its default DCT is off by up to 4 levels from the accurate one.
    pixels = tf.io.decode_jpeg(image, channels=data.channels, dct_method="INTEGER_ACCURATE")
    fits = tf.reduce_all(tf.shape(pixels)[:2] == data.image_size)
    pixels = tf.cond(fits, lambda: pixels, lambda: _resize(pixels, data.image_size))
    return tf.ensure_shape(pixels, (*data.image_size, data.channels))


def decoded_batches(
    records: Callable[[], Iterable[Batch]], signature: dict[str, tf.TensorSpec], data: DataSpec, steps: int
) -> tf.data.Dataset:
    """Batches of encoded images to batches of decoded ones, in the same order.

    Python runs once per batch and only gathers bytes; images are decoded one by one on all cores.

    Args:
        records: Returns a fresh iterator over `steps` batches whose `image` holds encoded images.
        signature: Shapes `[B]` or `[B, ...]` and dtypes of a batch of `records`.
        data: Size and channels wanted.
        steps: How many batches there are.

    Returns:
        Batches with `image` uint8 `[B, H, W, C]`, the rest as it was; the shape of every tensor is static.
    """

    def decode_record(record: Batch) -> Batch:
        shape = (*data.image_size, data.channels)
        padding = record["row"] == PADDING
        image = tf.cond(padding, lambda: tf.zeros(shape, tf.uint8), lambda: decode(record["image"], data))
        return {**record, "image": image}

    batch = signature["row"].shape[0]
    dataset = tf.data.Dataset.from_generator(records, output_signature=signature)
    dataset = dataset.unbatch().map(decode_record, num_parallel_calls=_cores(), deterministic=True)
    dataset = dataset.batch(batch, drop_remainder=True)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(PREFETCH)
    options = tf.data.Options()
    options.autotune.enabled = False  # ending an epoch would wait for the tuner's thread, for seconds
    # every worker already reads its own slice
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)


def decode_all(images: Sequence[bytes], data: DataSpec) -> np.ndarray:
    """Decodes some images on all cores.

    Returns:
        uint8 `[n, H, W, C]`.

    Raises:
        tf.errors.InvalidArgumentError: One of them cannot be decoded (`first_undecodable` tells which).
    """
    decoded = np.empty((len(images), *data.image_size, data.channels), np.uint8)
    for place, pixels in enumerate(_decoded(images, data)):
        decoded[place] = pixels
    return decoded


def first_undecodable(images: Sequence[bytes], data: DataSpec) -> int | None:
    """Index of the first image that cannot be decoded, or None."""
    good = 0
    try:
        for _ in _decoded(images, data):
            good += 1
    except tf.errors.InvalidArgumentError:
        return good  # results come in order, so the next one is at fault
    return None


def _decoded(images: Sequence[bytes], data: DataSpec) -> Iterable[np.ndarray]:
    dataset = tf.data.Dataset.from_tensor_slices(np.array(images, object))
    return dataset.map(lambda image: decode(image, data), num_parallel_calls=_cores(), deterministic=True).as_numpy_iterator()


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _resize(pixels: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    return tf.cast(tf.image.resize(pixels, size, method="bilinear", antialias=False) + 0.5, tf.uint8)
