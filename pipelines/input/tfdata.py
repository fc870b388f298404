"""Decodes stored images to uint8 batches with tf.data, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pipelines.cpus import count_process_cpus
from pipelines.input.geometry import Placements, place_images, place_record, use_windows
from pipelines.input.memory import keep_freed_memory
from pipelines.spec import DataSpec

Record = dict[str, Any]

PREFETCH = 4  # batches decoded ahead of the consumer
# Number of batches decoded at a time, so that no core is idle while the last images of one batch finish.
PARALLEL_BATCHES = 2
JPEG_START = b"\xff\xd8"
# Pixels around a part of a JPEG that are decoded with it: colours are stored at half the size.
MARGIN = 4
RATIOS = (1, 2, 4, 8)  # divisors of height and width that a JPEG decoder supports, to save work
BLACK = bytes.fromhex(  # a PNG file of one black pixel, which becomes a black image of any size
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c636000000002000148afa4710000000049454e44ae426082"
)
GREY = (9797, 19234, 3737)  # weights of R, G and B in 2**15: those of the PNG decoder, to the bit


class Placement(NamedTuple):
    """Where one image goes, see `pipelines.input.geometry.Placements`.

    Attributes:
        window: Part of the stored image that is used, int32 `[4]`: top, left, height, width.
        target: Part of the result that it is resized to, int32 `[4]`.
    """

    window: tf.Tensor
    target: tf.Tensor


def decode(
    image: tf.Tensor, data: DataSpec, placement: Placement | None = None, ratio: tf.Tensor | None = None
) -> tf.Tensor:
    """Decodes one JPEG or PNG and resizes it: bilinear, half-pixel centers, rounded.

    Args:
        image: Content of the file, a string scalar; its first bytes tell the format.
        data: Size and channels of the result. With one channel, the decoder converts colours to grey.
        placement: Where the image goes; not needed to stretch it.
        ratio: int32 scalar, the index in `RATIOS` that a JPEG is decoded at; None decodes every pixel.

    Returns:
        uint8 `[H, W, C]`.

    Raises:
        tf.errors.InvalidArgumentError: The image cannot be decoded.
    """

    def decode_at(ratio: int) -> tf.Tensor:
        if placement is not None and data.fit == "crop":
            pixels = _decode_window(image, placement.window, data, ratio)
            return _resize(pixels, data.image_size, data.antialias)
        return _fit(_decode_whole(image, data, ratio), placement, data)

    if ratio is None:
        return decode_at(1)
    return tf.switch_case(ratio, [lambda ratio=ratio: decode_at(ratio) for ratio in RATIOS])


def _decode_whole(image: tf.Tensor, data: DataSpec, ratio: int) -> tf.Tensor:
    """Decodes all of a JPEG, at a fraction of its size, or of a PNG: uint8 `[h, w, C]`."""
    # decode_jpeg reads PNG as well. Its default DCT is off by up to 4 levels from the accurate one.
    return tf.io.decode_jpeg(image, channels=data.channels, ratio=ratio, dct_method="INTEGER_ACCURATE")


def _decode_window(image: tf.Tensor, window: tf.Tensor, data: DataSpec, ratio: int) -> tf.Tensor:
    """Decodes a part of an image: the same pixels as in the whole image, for a JPEG in less time.

    A pixel next to the border of the part would be interpolated from less colour information than in the
    whole image. So a margin is decoded as well, and cut off.

    Args:
        image: Content of the file, a string scalar.
        window: Part of the stored image, int32 `[4]`: top, left, height, width.
        data: Number of channels of the result.
        ratio: Divisor of height and width that a JPEG is decoded at, and its window divided by.
    """
    window = tf.concat([window[:2] // ratio, tf.maximum(window[2:] // ratio, 1)], axis=0)

    def decode_part() -> tf.Tensor:
        size = -(-tf.io.extract_jpeg_shape(image)[:2] // ratio)  # a decoder rounds up
        start = tf.maximum(window[:2] - MARGIN, 0)
        stop = tf.minimum(window[:2] + window[2:] + MARGIN, size)
        pixels = tf.io.decode_and_crop_jpeg(
            image,
            tf.concat([start, stop - start], axis=0),
            channels=data.channels,
            ratio=ratio,
            dct_method="INTEGER_ACCURATE",
        )
        return _cut(pixels, tf.concat([window[:2] - start, window[2:]], axis=0))

    is_jpeg = tf.strings.substr(image, 0, len(JPEG_START)) == JPEG_START
    return tf.cond(is_jpeg, decode_part, lambda: _cut(_decode_whole(image, data, ratio), window))


def decode_raw(
    image: tf.Tensor, shape: tf.Tensor, data: DataSpec, placement: Placement | None = None
) -> tf.Tensor:
    """Resizes raw pixels, stored in `image` row by row, as `decode` does.

    Args:
        image: Bytes of the pixels, a string scalar.
        shape: int32 `[3]`: height, width and channels, 1 or 3, of the stored image.
        data: Size and channels of the result.
        placement: Where the image goes; not needed to stretch it.

    Returns:
        uint8 `[H, W, C]`.

    Raises:
        tf.errors.InvalidArgumentError: The number of pixels does not match the shape.
    """
    pixels = tf.reshape(tf.io.decode_raw(image, tf.uint8), shape)  # [h, w, c]
    if data.channels == 3:
        return _fit_if_needed(tf.tile(pixels, [1, 1, 3 // shape[2]]), placement, data)
    weights = tf.cond(shape[2] == 3, lambda: tf.constant(GREY), lambda: tf.constant([sum(GREY)]))
    grey = tf.reduce_sum(tf.cast(pixels, tf.int32) * weights, axis=2, keepdims=True) // sum(GREY)  # [h, w, 1]
    return _fit_if_needed(tf.cast(grey, tf.uint8), placement, data)


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
        records: Returns a new iterator over `steps` batches, or over consecutive parts of each, which are
            decoded one after the other. A part of n images has `encoded`, a list of at most n stored images
            as bytes-like objects, `shape`, int32 `[n, 3]` of the stored images, and arrays `[n, ...]`, among
            them `row`, and the `window` that is decoded of each image if `data` is that of
            `pipelines.input.geometry.use_windows`. Positions beyond the images are padding.
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
    is_placed = data.fit != "stretch"
    arrays = {name: tf.TensorSpec((None, *spec.shape[1:]), spec.dtype) for name, spec in signature.items()}
    stored = {"encoded": tf.TensorSpec((None,), tf.string), "shape": tf.TensorSpec((None, 3), tf.int32)}
    if is_placed:
        stored |= dict.fromkeys(Placements._fields, tf.TensorSpec((None, 4), tf.int32))
    padding = b"\0" if encoding == "raw" else BLACK

    def pad_records() -> Iterable[Record]:
        for record in records():
            images = [bytes(image) for image in record["encoded"]]
            images += [padding] * (len(record["row"]) - len(images))
            shapes = np.maximum(record["shape"], 1)
            placements = place_record(record, data)._asdict() if is_placed else {}
            yield {**record, **placements, "encoded": np.array(images, object), "shape": shapes}

    @tf.autograph.experimental.do_not_convert
    def decode_record(record: Record) -> Record:
        placements = Placements(record["window"], record["target"]) if is_placed else None
        images = _decode_images(record["encoded"], record["shape"], placements, data, encoding)
        images.set_shape((None, *data.image_size, data.channels))
        return {"image": images, **{name: record[name] for name in signature}}

    dataset = tf.data.Dataset.from_generator(pad_records, output_signature={**arrays, **stored})
    dataset = dataset.map(decode_record, num_parallel_calls=PARALLEL_BATCHES, deterministic=True)
    dataset = dataset.rebatch(batch, drop_remainder=True)  # joins parts; copies no whole batch
    return configure_dataset(dataset, steps)


def configure_dataset(dataset: tf.data.Dataset, steps: int) -> tf.data.Dataset:
    """Sets the length of a dataset of batches, prefetches it, and turns off TensorFlow's own sharding."""
    options = tf.data.Options()
    options.threading.max_intra_op_parallelism = 1  # images are decoded in parallel instead
    # Every worker already reads its own slice.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))
    return disable_autotuning(dataset.prefetch(PREFETCH).with_options(options))


def disable_autotuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the dataset without TensorFlow's tuner, which delays the end of its iterators.

    An iterator that is deleted waits for the thread of its tuner. That thread sleeps for up to a minute at a
    time, and may sleep once more, because it is woken just before the iterator counts as cancelled.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def decode_images(
    images: tf.Tensor, shapes: tf.Tensor, placements: Placements | None, data: DataSpec, encoding: str
) -> tf.Tensor:
    """Decodes n images in parallel, inside a graph, without a dataset element for each.

    Args:
        images: Contents of the files, strings `[n]`.
        shapes: int32 `[n, 3]`: height, width and channels of the stored images.
        placements: Where they go, as tensors; None to stretch them.
        data: Size and channels of the result, and whether JPEGs are decoded exactly or fast.
        encoding: Encoding of the shard set; only `raw` makes a difference.

    Returns:
        uint8 `[n, H, W, C]`.

    Raises:
        tf.errors.InvalidArgumentError: An image cannot be decoded.
    """

    def decode_stored(stored: tuple[tf.Tensor, ...]) -> tf.Tensor:
        image, shape, *boxes = stored
        placement = Placement(*boxes) if boxes else None
        if encoding == "raw":
            return decode_raw(image, shape, data, placement)
        if data.decode == "fast":
            return decode(image, data, placement, choose_ratio(image, shape, data, placement))
        return decode(image, data, placement)

    signature = tf.TensorSpec((*data.image_size, data.channels), tf.uint8)
    return tf.map_fn(
        decode_stored,
        (images, shapes, *(placements or ())),
        fn_output_signature=signature,
        parallel_iterations=count_process_cpus(),
    )


def choose_ratio(
    image: tf.Tensor, shape: tf.Tensor, data: DataSpec, placement: Placement | None = None
) -> tf.Tensor:
    """Chooses the largest ratio that leaves the used part of an image at least as large as in the result.

    Args:
        image: Content of the file, a string scalar.
        shape: int32 `[3]`: height, width and channels of the stored image.
        data: Size of the result.
        placement: Where the image goes; not needed to stretch it.

    Returns:
        int32 scalar, an index in `RATIOS`; 0 if the image is not a JPEG.
    """
    used = shape[:2] if placement is None else placement.window[2:]
    size = data.image_size if placement is None else placement.target[2:]
    ratios = tf.constant(RATIOS[1:])[:, None]
    is_large = tf.reduce_all(-(-used // ratios) >= size, axis=1)  # a decoder rounds up
    is_jpeg = tf.strings.substr(image, 0, len(JPEG_START)) == JPEG_START
    return tf.where(is_jpeg, tf.reduce_sum(tf.cast(is_large, tf.int32)), 0)


def decode_all(
    images: Sequence[Any],
    shapes: np.ndarray,
    data: DataSpec,
    encoding: str,
    windows: np.ndarray | None = None,
) -> np.ndarray:
    """Decodes some stored images on all cores.

    Args:
        images: Contents of n files, bytes-like objects.
        shapes: int32 `[n, 3]`: height, width and channels of the stored images.
        data: Size and channels of the result, and whether JPEGs are decoded exactly or fast.
        encoding: Encoding of the shard set; only `raw` makes a difference.
        windows: Part of each image that becomes the result, int32 `[n, 4]`; None to fit whole images.

    Returns:
        uint8 `[n, H, W, C]`.

    Raises:
        tf.errors.InvalidArgumentError: One of them cannot be decoded (`find_undecodable` tells which).
    """
    stored = tf.constant([bytes(image) for image in images], tf.string, (len(images),))
    stored_shapes = np.asarray(shapes, np.int32).reshape(-1, 3)
    if windows is not None:
        data = use_windows(data)
    placements = _place_images(stored_shapes, data, windows)
    return _decode_images(stored, tf.constant(stored_shapes), placements, data, encoding).numpy()


def _place_images(shapes: np.ndarray, data: DataSpec, windows: np.ndarray | None = None) -> Placements | None:
    """Returns where images go, as tensors; None to stretch them."""
    if data.fit == "stretch":
        return None
    placements = place_images(shapes, data)
    window = placements.window if windows is None else windows
    return Placements(tf.constant(window), tf.constant(placements.target))


# One function for all callers, because tracing it takes as long as decoding a hundred photos: above, and at
# the start of every epoch.
_decode_images = tf.function(decode_images, autograph=False, reduce_retracing=True)


def find_undecodable(images: Sequence[Any], shapes: np.ndarray, data: DataSpec, encoding: str) -> int | None:
    """Returns the index of the first image that cannot be decoded, or None. Arguments: see `decode_all`."""
    encoded = np.array([bytes(image) for image in images], object)
    stored_shapes = np.asarray(shapes, np.int32)
    boxes = _place_images(stored_shapes, data) or ()

    def decode_one(image: tf.Tensor, shape: tf.Tensor, *boxes: tf.Tensor) -> tf.Tensor:
        placements = Placements(*(box[None] for box in boxes)) if boxes else None
        return decode_images(image[None], shape[None], placements, data, encoding)

    dataset = tf.data.Dataset.from_tensor_slices((encoded, stored_shapes, *boxes)).map(
        decode_one, num_parallel_calls=count_process_cpus()
    )
    dataset = disable_autotuning(dataset)
    decodable = 0
    try:
        for _ in dataset:
            decodable += 1
    except tf.errors.InvalidArgumentError:
        return decodable  # results come in order, so the next one failed
    return None


def _fit_if_needed(pixels: tf.Tensor, placement: Placement | None, data: DataSpec) -> tf.Tensor:
    """Fits raw pixels into the result unless they already have its size, which is common.

    The check is cheap compared with resizing. For encoded files, decoding dominates and it would not pay.
    """
    used = tf.shape(pixels)[:2] if placement is None else placement.window[2:]
    has_size = tf.reduce_all([used == data.image_size, tf.shape(pixels)[:2] == data.image_size])
    fitted = tf.cond(has_size, lambda: pixels, lambda: _fit(pixels, placement, data))
    return tf.ensure_shape(fitted, (*data.image_size, data.channels))


def _fit(pixels: tf.Tensor, placement: Placement | None, data: DataSpec) -> tf.Tensor:
    """Fits a decoded image `[h, w, C]` into the result `[H, W, C]`.

    Args:
        pixels: The whole image; except with `crop`, it may have been decoded at a fraction of its size.
        placement: Where the image goes; None to stretch it.
        data: Size of the result, and the way to fit an image into it.
    """
    if placement is None or data.fit == "stretch":
        return _resize(pixels, data.image_size, data.antialias)
    if data.fit == "crop":
        return _resize(_cut(pixels, placement.window), data.image_size, data.antialias)
    target = placement.target
    resized = _resize(pixels, target[2:], data.antialias)
    after = data.image_size - target[:2] - target[2:]
    borders = tf.stack([target[:2], after], axis=1)  # [2, 2]
    padded = tf.pad(resized, tf.pad(borders, [[0, 1], [0, 0]]))
    return tf.ensure_shape(padded, (*data.image_size, data.channels))


def _cut(pixels: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """Cuts the window `[top, left, height, width]` out of an image `[h, w, C]`."""
    return tf.slice(pixels, tf.pad(window[:2], [[0, 1]]), tf.pad(window[2:], [[0, 1]], constant_values=-1))


def _resize(pixels: tf.Tensor, size: tuple[int, int] | tf.Tensor, antialias: bool) -> tf.Tensor:
    """Resizes an image by the operations behind `tf.image.resize`, which would add twenty small ones.

    An image that already has the right size stays unchanged.
    """
    if antialias:
        sides = tf.cast(tf.shape(pixels)[:2], tf.float32)
        smoothed = tf.raw_ops.ScaleAndTranslate(
            images=tf.expand_dims(pixels, 0),
            size=size,
            scale=tf.cast(size, tf.float32) / sides,
            translation=tf.zeros(2),
            kernel_type="triangle",
            antialias=True,
        )
        return tf.squeeze(tf.cast(smoothed + 0.5, tf.uint8), 0)
    resized = tf.raw_ops.ResizeBilinear(images=tf.expand_dims(pixels, 0), size=size, half_pixel_centers=True)
    return tf.squeeze(tf.cast(resized + 0.5, tf.uint8), 0)
