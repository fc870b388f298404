"""Decodes stored images to uint8 batches with tf.data, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.cpus import count_process_cpus
from pipelines.input.memory import keep_freed_memory
from pipelines.spec import DataSpec

Record = dict[str, Any]

PREFETCH = 4  # batches decoded ahead of the consumer
# Number of batches decoded at a time, so that no core is idle while the last images of one batch finish.
PARALLEL_BATCHES = 2
RATIOS = (1, 2, 4, 8)  # divisors of height and width that a JPEG decoder supports, to save work
BLACK = bytes.fromhex(  # a PNG file of one black pixel, which becomes a black image of any size
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c636000000002000148afa4710000000049454e44ae426082"
)
GREY = (9797, 19234, 3737)  # weights of R, G and B in 2**15: those of the PNG decoder, to the bit


def decode(image: tf.Tensor, data: DataSpec, ratio: tf.Tensor | None = None) -> tf.Tensor:
    """Decodes one JPEG or PNG and resizes it: bilinear, half-pixel centers, no antialiasing, rounded.

    Args:
        image: Content of the file, a string scalar; its first bytes tell the format.
        data: Size and channels of the result. With one channel, the decoder converts colours to grey.
        ratio: int32 scalar, the index in `RATIOS` that a JPEG is decoded at; None decodes every pixel.

    Returns:
        uint8 `[H, W, C]`.

    Raises:
        tf.errors.InvalidArgumentError: The image cannot be decoded.
    """

    def decode_at(ratio: int) -> tf.Tensor:
        # decode_jpeg reads PNG as well. Its default DCT is off by up to 4 levels from the accurate one.
        return tf.io.decode_jpeg(image, channels=data.channels, ratio=ratio, dct_method="INTEGER_ACCURATE")

    if ratio is None:
        return _resize(decode_at(1), data.image_size)
    branches = [lambda ratio=ratio: decode_at(ratio) for ratio in RATIOS]
    return _resize(tf.switch_case(ratio, branches), data.image_size)


def decode_raw(image: tf.Tensor, shape: tf.Tensor, data: DataSpec) -> tf.Tensor:
    """Resizes raw pixels, stored in `image` row by row, as `decode` does.

    Args:
        image: Bytes of the pixels, a string scalar.
        shape: int32 `[3]`: height, width and channels, 1 or 3, of the stored image.
        data: Size and channels of the result.

    Returns:
        uint8 `[H, W, C]`.

    Raises:
        tf.errors.InvalidArgumentError: The number of pixels does not match the shape.
    """
    pixels = tf.reshape(tf.io.decode_raw(image, tf.uint8), shape)  # [h, w, c]
    if data.channels == 3:
        return _resize_if_needed(tf.tile(pixels, [1, 1, 3 // shape[2]]), data)
    weights = tf.cond(shape[2] == 3, lambda: tf.constant(GREY), lambda: tf.constant([sum(GREY)]))
    grey = tf.reduce_sum(tf.cast(pixels, tf.int32) * weights, axis=2, keepdims=True) // sum(GREY)  # [h, w, 1]
    return _resize_if_needed(tf.cast(grey, tf.uint8), data)


def decode_batches(
    records: Callable[[], Iterable[Record]],
    signature: dict[str, tf.TensorSpec],
    data: DataSpec,
    encoding: str,
    steps: int,
) -> tf.data.Dataset:
    """Builds a dataset that decodes batches of stored images, in the same order.

    Python runs once per batch and only passes bytes; images are decoded one by one on all cores.

    Args:
        records: Returns a new iterator over `steps` batches. Each has `encoded`, a list of at most B stored
            images as bytes-like objects, `shape`, int32 `[B, 3]` of the stored images, and arrays
            `[B, ...]`, among them `row`. Positions beyond the images are padding.
        signature: Shapes `[B, ...]` and dtypes of the arrays of `records` except `encoded` and `shape`.
        data: Size and channels of the result, and whether JPEGs are decoded exactly or fast.
        encoding: Encoding of the shard set (see `pipelines.spec.ShardSpec`); only `raw` makes a difference.
        steps: Number of batches.

    Returns:
        Batches with `image` uint8 `[B, H, W, C]`, black for padding, and the arrays unchanged; every shape
        is static.
    """
    keep_freed_memory()
    batch = signature["row"].shape[0]
    stored = {"encoded": tf.TensorSpec((batch,), tf.string), "shape": tf.TensorSpec((batch, 3), tf.int32)}
    padding = b"\0" if encoding == "raw" else BLACK

    def pad_records() -> Iterable[Record]:
        for record in records():
            images = [bytes(image) for image in record["encoded"]]
            count = len(images)
            images += [padding] * (batch - count)
            shapes = np.ones((batch, 3), np.int32)
            shapes[:count] = record["shape"][:count]
            yield {**record, "encoded": np.array(images, object), "shape": shapes}

    @tf.autograph.experimental.do_not_convert
    def decode_record(record: Record) -> Record:
        images = _decode_images(record["encoded"], record["shape"], data, encoding)
        images.set_shape((batch, *data.image_size, data.channels))  # it may be traced for batches of any size
        return {"image": images, **{name: record[name] for name in signature}}

    dataset = tf.data.Dataset.from_generator(pad_records, output_signature={**signature, **stored})
    dataset = dataset.map(decode_record, num_parallel_calls=PARALLEL_BATCHES, deterministic=True)
    return configure_dataset(dataset, steps)


def configure_dataset(dataset: tf.data.Dataset, steps: int) -> tf.data.Dataset:
    """Sets the length of a dataset of batches, prefetches it, and turns off TensorFlow's own sharding."""
    options = tf.data.Options()
    options.autotune.enabled = False  # ending an epoch would wait for the tuner's thread, for seconds
    options.threading.max_intra_op_parallelism = 1  # images are decoded in parallel instead
    # Every worker already reads its own slice.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))
    return dataset.prefetch(PREFETCH).with_options(options)


def decode_images(images: tf.Tensor, shapes: tf.Tensor, data: DataSpec, encoding: str) -> tf.Tensor:
    """Decodes n images in parallel, inside a graph, without a dataset element for each.

    Args:
        images: Contents of the files, strings `[n]`.
        shapes: int32 `[n, 3]`: height, width and channels of the stored images.
        data: Size and channels of the result, and whether JPEGs are decoded exactly or fast.
        encoding: Encoding of the shard set; only `raw` makes a difference.

    Returns:
        uint8 `[n, H, W, C]`.

    Raises:
        tf.errors.InvalidArgumentError: An image cannot be decoded.
    """

    def decode_stored(stored: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        image, shape = stored
        if encoding == "raw":
            return decode_raw(image, shape, data)
        if data.decode == "fast":
            return decode(image, data, choose_ratio(image, shape, data))
        return decode(image, data)

    signature = tf.TensorSpec((*data.image_size, data.channels), tf.uint8)
    return tf.map_fn(
        decode_stored,
        (images, shapes),
        fn_output_signature=signature,
        parallel_iterations=count_process_cpus(),
    )


def choose_ratio(image: tf.Tensor, shape: tf.Tensor, data: DataSpec) -> tf.Tensor:
    """Chooses the largest ratio that leaves an image at least as high and as wide as the result.

    Args:
        image: Content of the file, a string scalar.
        shape: int32 `[3]`: height, width and channels of the stored image.
        data: Size of the result.

    Returns:
        int32 scalar, an index in `RATIOS`; 0 if the image is not a JPEG.
    """
    ratios = tf.constant(RATIOS[1:])[:, None]
    is_large = tf.reduce_all(-(-shape[:2] // ratios) >= data.image_size, axis=1)  # a decoder rounds up
    is_jpeg = tf.strings.substr(image, 0, 2) == b"\xff\xd8"
    return tf.where(is_jpeg, tf.reduce_sum(tf.cast(is_large, tf.int32)), 0)


def decode_all(images: Sequence[Any], shapes: np.ndarray, data: DataSpec, encoding: str) -> np.ndarray:
    """Decodes some stored images on all cores.

    Args:
        images: Contents of n files, bytes-like objects.
        shapes: int32 `[n, 3]`: height, width and channels of the stored images.
        data: Size and channels of the result, and whether JPEGs are decoded exactly or fast.
        encoding: Encoding of the shard set; only `raw` makes a difference.

    Returns:
        uint8 `[n, H, W, C]`.

    Raises:
        tf.errors.InvalidArgumentError: One of them cannot be decoded (`find_undecodable` tells which).
    """
    stored = tf.constant([bytes(image) for image in images], tf.string, (len(images),))
    return _decode_images(stored, tf.constant(shapes, tf.int32, (len(images), 3)), data, encoding).numpy()


# One function for all callers, because tracing it takes as long as decoding a hundred photos: above, and at
# the start of every epoch.
_decode_images = tf.function(decode_images, autograph=False, reduce_retracing=True)


def find_undecodable(images: Sequence[Any], shapes: np.ndarray, data: DataSpec, encoding: str) -> int | None:
    """Returns the index of the first image that cannot be decoded, or None. Arguments: see `decode_all`."""
    stored = (np.array([bytes(image) for image in images], object), np.asarray(shapes, np.int32))
    dataset = tf.data.Dataset.from_tensor_slices(stored).map(
        lambda image, shape: decode_images(image[None], shape[None], data, encoding),
        num_parallel_calls=count_process_cpus(),
    )
    decodable = 0
    try:
        for _ in dataset:
            decodable += 1
    except tf.errors.InvalidArgumentError:
        return decodable  # results come in order, so the next one failed
    return None


def _resize_if_needed(pixels: tf.Tensor, data: DataSpec) -> tf.Tensor:
    """Resizes raw pixels unless they already have the size of the result, which is common.

    The check is cheap compared with resizing. For encoded files, decoding dominates and it would not pay.
    """
    has_size = tf.reduce_all(tf.shape(pixels)[:2] == data.image_size)
    pixels = tf.cond(has_size, lambda: pixels, lambda: _resize(pixels, data.image_size))
    return tf.ensure_shape(pixels, (*data.image_size, data.channels))


def _resize(pixels: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Resizes an image by the operation behind `tf.image.resize`, which would add twenty small ones.

    An image that already has the right size stays unchanged.
    """
    resized = tf.raw_ops.ResizeBilinear(images=tf.expand_dims(pixels, 0), size=size, half_pixel_centers=True)
    return tf.squeeze(tf.cast(resized + 0.5, tf.uint8), 0)
