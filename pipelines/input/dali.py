"""Encoded images to uint8 batches with NVIDIA DALI: on a GPU where TensorFlow sees one, else on the CPU.

DALI takes the very bytes that tf.data takes and makes the same pixels: its decoder agrees to the last bit on the CPU, its
resize differs by at most one level, mostly because it rounds halves to even where TensorFlow rounds them up. The batches reach
TensorFlow through DLPack, without a copy.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipelines.errors import ConfigError
from pipelines.input.tfdata import GREY
from pipelines.records import Batch
from pipelines.spec import DataSpec

Array = NDArray[np.uint8]
Record = dict[str, Any]

AHEAD = 2  # batches being decoded before they are asked for
KEPT = 3  # batches whose memory DALI may not take back yet: TensorFlow's steps on a GPU may still be on their way
BLACK = np.frombuffer(
    b"P6 1 1 255\n\0\0\0", np.uint8
)  # one black pixel as a PPM file, which becomes a black image of any size


class UndecodableError(tf.errors.InvalidArgumentError):  # type: ignore[misc]
    """DALI cannot decode an image. What tf.data raises is of the same kind.

    Attributes:
        row: The row of the split.
    """

    def __init__(self, row: int) -> None:
        super().__init__(None, None, f"DALI cannot decode the image of row {row}")
        self.row = row


def wanted(data: DataSpec, decodable: bool) -> bool:
    """Whether DALI decodes: where it is asked for, or where it and a GPU are there and it can do what is asked for.

    DALI can bring the whole process down over an image that is none (seen with 2.4 on the CPU), so it only gets images
    that were decoded once, while the shard set was built.

    Args:
        data: What is asked for.
        decodable: Whether the images were decoded once.

    Raises:
        ConfigError: DALI is asked for, and the images were not.
    """
    if data.backend == "dali" and not decodable:
        fix = "use backend=tfdata, or build the shard set with --check decode"
        raise ConfigError(
            "images that were decoded once, where DALI decodes",
            "backend=dali with shards of --check header",
            fix,
        )
    if data.backend != "auto":
        return data.backend == "dali"
    fits = decodable and data.decode == "exact"
    return bool(fits and tf.config.list_physical_devices("GPU") and available())


def available() -> bool:
    """Whether DALI is installed and can be imported, which takes about a second the first time."""
    try:
        import nvidia.dali.fn  # noqa: F401
    except ImportError:
        return False
    return True


def decoded_batches(
    records: Callable[[], Iterable[Record]], data: DataSpec, batch: int, encoding: str
) -> Iterator[Batch]:
    """Batches of encoded images to batches of decoded ones, in the same order.

    Python runs once per batch and only hands over bytes; DALI decodes on its own threads while the caller computes. The pipeline
    lives as long as the iterator: closing it, or letting go of it, ends the pipeline with its threads.

    Args:
        records: Returns a fresh iterator over batches: `encoded`, a list of at most `batch` encoded images as bytes-like
            objects, with `encoding` raw `shape` int32 `[batch, 3]`, and arrays `[batch, ...]`: at least `label`, `weight` and `row`.
            Places beyond the images are padding.
        data: Size and channels wanted.
        batch: Images per batch, B.
        encoding: How the images are stored (see `pipelines.spec.ShardSpec`); only `raw` makes a difference.

    Returns:
        Batches with `image` uint8 `[B, H, W, C]`, black where there is padding, and every array but `encoded` and `shape` as a tensor.
        A batch on a GPU may be used until three more have been taken.

    Raises:
        ConfigError: DALI is not installed, or is asked for `decode=fast`, which it does not have.
        UndecodableError: While iterating, in place of the batch: an image cannot be decoded.
    """
    if data.decode == "fast":
        raise ConfigError(
            "decode=exact where DALI decodes: it always decodes in full",
            f"decode={data.decode}",
            "use decode=exact or backend=tfdata",
        )
    if not available():
        raise ConfigError(
            "NVIDIA DALI to be installed", "backend=dali", "install nvidia-dali-cuda120 or use backend=tfdata"
        )
    return _decoded(records, data, batch, encoding == "raw")


def _decoded(
    records: Callable[[], Iterable[Record]], data: DataSpec, batch: int, raw: bool
) -> Iterator[Batch]:
    carried: deque[Record] = deque()  # what DALI is at work on, the oldest first

    def source() -> Iterator[list[Array]]:
        for record in records():
            images = _images(record, data, batch, raw)
            carried.append(record)
            yield images

    pipeline = _pipeline(source(), data, batch, raw)
    kept: deque[Any] = deque(maxlen=KEPT)
    pipeline.schedule_run()  # takes from `source`, whose errors pass as they are
    while carried:
        record = carried.popleft()
        try:
            kept.extend(pipeline.outputs())
        except RuntimeError as error:
            row = _undecodable_row(record, data, raw)
            if row is None:
                raise  # something else went wrong
            raise UndecodableError(row) from error
        pipeline.schedule_run()  # the next one, before the caller gets to work on this one
        image = tf.experimental.dlpack.from_dlpack(kept[-1].as_tensor().__dlpack__())
        rest = {
            name: tf.convert_to_tensor(array)
            for name, array in record.items()
            if name not in ("encoded", "shape")
        }
        yield cast(Batch, {"image": image, **rest})


def _pipeline(source: Iterator[list[Array]], data: DataSpec, batch: int, raw: bool) -> Any:
    """The pipeline from `source` to uint8 `[batch, H, W, C]`; it does not begin before it is asked to."""
    from nvidia.dali import Pipeline, fn, types

    gpu = bool(tf.config.list_physical_devices("GPU"))
    threads = len(os.sched_getaffinity(0))
    # the dynamic executor leaves its results alone for as long as anyone holds them
    options = {
        "num_threads": threads,
        "prefetch_queue_depth": AHEAD,
        "exec_dynamic": True,
        "device_id": 0 if gpu else None,
    }
    with Pipeline(batch_size=batch, **options) as pipeline:
        images = fn.external_source(
            source=source, batch=True, dtype=types.UINT8, **({"layout": "HWC"} if raw else {"ndim": 1})
        )
        if not raw:
            images = fn.decoders.image(
                images,
                device="mixed" if gpu else "cpu",
                output_type=types.RGB if data.channels == 3 else types.GRAY,
                adjust_orientation=False,  # shards hold images the right way up, and tf.data looks at no EXIF either
                jpeg_fancy_upsampling=True,  # as on the CPU
            )
        elif gpu:
            images = images.gpu()
        images = fn.resize(images, size=data.image_size, interp_type=types.INTERP_LINEAR, antialias=False)
        pipeline.set_outputs(images)
    return pipeline


def _images(record: Record, data: DataSpec, batch: int, raw: bool) -> list[Array]:
    """What DALI takes of a batch: an array per image, one black pixel for each place without one."""
    encoded = [np.frombuffer(image, np.uint8) for image in record["encoded"]]
    padding = batch - len(encoded)
    if not raw:
        return encoded + [BLACK] * padding
    pixels = [
        _pixels(image, shape, row, data)
        for image, shape, row in zip(encoded, record["shape"], record["row"], strict=False)
    ]
    return pixels + [np.zeros((1, 1, data.channels), np.uint8)] * padding


def _pixels(raw: Array, shape: NDArray[np.int32], row: int, data: DataSpec) -> Array:
    """Raw pixels as uint8 `[h, w, C]` with the channels wanted."""
    if len(raw) != np.prod(shape):
        raise UndecodableError(int(row))
    height, width, channels = shape
    pixels = raw.reshape(height, width, channels)
    if channels == data.channels:
        return pixels
    if data.channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return (pixels @ np.array(GREY, np.uint32) // sum(GREY)).astype(np.uint8)[
        ..., None
    ]  # [h, w] -> [h, w, 1]


def _undecodable_row(record: Record, data: DataSpec, raw: bool) -> int | None:
    """The first row of a batch whose image cannot be decoded alone, or None."""
    images = _images(record, data, len(record["encoded"]), raw)
    pipeline = _pipeline(([image] for image in images), data, 1, raw)
    for row in record["row"][: len(images)]:
        try:
            pipeline.run()
        except RuntimeError:
            return int(row)
    return None
