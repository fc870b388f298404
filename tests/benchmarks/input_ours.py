"""Contestants of the input benchmark: what the machine can do at best, and this project's own ways to feed a step."""

from __future__ import annotations

import multiprocessing
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from worker import Rounds

SPLIT, SEED = "train", 0


def encoded(shards: str) -> list[bytes]:
    """The encoded images of a shard set, in memory."""
    from pipelines.input.reader import ShardReader

    reader = ShardReader(shards, SPLIT)
    return [bytes(image) for image in reader.images(range(reader.rows))]


def on_threads(work: Callable[[Any], object], items: list[Any], threads: int) -> None:
    """Does all the work on some threads, with as little Python between the items as there can be."""
    waiting = deque(items)

    def run() -> None:
        while True:
            try:
                item = waiting.popleft()
            except IndexError:
                return
            work(item)

    crew = [threading.Thread(target=run) for _ in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()


def raw_threads(shards: str, threads: int) -> Rounds:
    """libjpeg-turbo and nothing else, on threads."""
    import simplejpeg

    images = encoded(shards)
    yield None
    while True:
        on_threads(simplejpeg.decode_jpeg, images, threads)
        yield None


def raw_processes(shards: str, threads: int) -> Rounds:
    """libjpeg-turbo and nothing else, in processes that hold the images already."""
    global _held
    _held = encoded(shards)
    with multiprocessing.get_context("fork").Pool(threads) as pool:
        size = -(-len(_held) // (8 * threads))
        parts = [range(start, min(start + size, len(_held))) for start in range(0, len(_held), size)]
        yield None
        while True:
            pool.map(_decode_held, parts, chunksize=1)
            yield None


_held: list[bytes] = []


def _decode_held(part: range) -> None:
    import simplejpeg

    for index in part:
        simplejpeg.decode_jpeg(_held[index])


def raw_tensorflow(shards: str, batch: int, size: int = 0) -> Rounds:
    """TensorFlow's decoder with the accurate transform, with a size its resizing too, and nothing else; in memory that is kept."""
    import numpy as np
    import tensorflow as tf

    from pipelines.input.memory import keep_freed_memory
    from pipelines.input.tfdata import AT_WORK, PREFETCH, cores, decode
    from pipelines.spec import DataSpec

    def decoded(image: tf.Tensor) -> tf.Tensor:
        if size:
            return decode(image, DataSpec(image_size=(size, size)))
        return tf.shape(tf.io.decode_jpeg(image, 3, dct_method="INTEGER_ACCURATE"))[
            0
        ]  # the pixels never reach Python

    keep_freed_memory()
    shape = tf.TensorSpec((size, size, 3), tf.uint8) if size else tf.TensorSpec((), tf.int32)
    images = tf.data.Dataset.from_tensor_slices(np.array(encoded(shards), object)).batch(batch)
    batches = images.map(
        lambda images: tf.map_fn(decoded, images, fn_output_signature=shape, parallel_iterations=cores()),
        num_parallel_calls=AT_WORK,
    )
    yield None
    while True:
        for _ in batches.prefetch(PREFETCH):
            pass
        yield None


def order_and_reader(shards: str, batch: int) -> Rounds:
    """Which rows, and their bytes with the checksums compared: all that comes before decoding."""
    from pipelines.input.order import epoch_order, global_batch_rows, steps_per_epoch
    from pipelines.input.reader import ShardReader

    reader, epoch = ShardReader(shards, SPLIT), 0
    yield None
    while True:
        order = epoch_order(reader.rows, SEED, epoch)
        for step in range(steps_per_epoch(reader.rows, batch)):
            rows = global_batch_rows(order, step, batch)
            reader.images(rows[rows >= 0])
        epoch += 1
        yield None


def ours(shards: str, batch: int, augment: dict[str, Any] | None, epochs: int, **data: Any) -> Rounds:
    """Batches as a training step gets them: float32, augmented on the device where `augment` says how, of so many epochs in a row."""
    if data.get("backend") == "dali":
        import nvidia.dali  # noqa: F401 (the table says so where it is not there)
    import tensorflow as tf

    from pipelines.augment.apply import apply_augmentations
    from pipelines.input.batches import Batches
    from pipelines.input.cache import Cache
    from pipelines.spec import AugmentSpec, DataSpec

    spec = AugmentSpec(**augment) if augment else None
    strategy = tf.distribute.get_strategy()  # one device, as in training
    batches = Batches(shards, SPLIT, DataSpec(**data), batch, seed=SEED, augment=spec, cache=Cache(strategy))

    @tf.function
    def step(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        return strategy.run(lambda batch: apply_augmentations(batches.attach(batch), spec)[0], args=(batch,))

    epoch = 0
    yield None
    while True:
        for features in batches.epoch(
            epoch, epochs=epochs
        ):  # a training has one iterator for all of its epochs
            images = step(features)
        float(images[0, 0, 0, 0])  # what runs on a device is done now
        epoch += epochs
        yield None
