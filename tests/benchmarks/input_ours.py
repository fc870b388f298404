"""Candidates of the input benchmark: raw decoding as the limit, and this project's input pipeline."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from worker import Rounds

SPLIT = "train"
SEED = 0
PARTS_PER_PROCESS = 8


def read_encoded(shards: str) -> list[bytes]:
    """Reads the encoded images of a shard set into memory."""
    from pipelines.input.reader import ShardReader

    reader = ShardReader(shards, SPLIT)
    return [bytes(image) for image in reader.read_images(range(reader.rows))]


def run_on_threads(work: Callable[[Any], object], items: list[Any], threads: int) -> None:
    """Applies a function to all items on threads, with as little Python between the items as possible."""
    queue = deque(items)

    def run() -> None:
        while True:
            try:
                item = queue.popleft()
            except IndexError:
                return
            work(item)

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def raw_threads(shards: str, threads: int) -> Rounds:
    """Decodes with libjpeg-turbo on threads, and does nothing else."""
    import simplejpeg

    images = read_encoded(shards)
    yield None
    while True:
        run_on_threads(simplejpeg.decode_jpeg, images, threads)
        yield None


def raw_processes(shards: str, threads: int) -> Rounds:
    """Decodes with libjpeg-turbo in forked processes that share the encoded images."""
    global _shared_images
    _shared_images = read_encoded(shards)
    count = len(_shared_images)
    size = -(-count // (PARTS_PER_PROCESS * threads))
    parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
    with multiprocessing.get_context("fork").Pool(threads) as pool:
        yield None
        while True:
            pool.map(_decode_part, parts, chunksize=1)
            yield None


_shared_images: list[bytes] = []  # inherited by forked processes, which saves sending the images


def _decode_part(indices: range) -> None:
    import simplejpeg

    for index in indices:
        simplejpeg.decode_jpeg(_shared_images[index])


def raw_tensorflow(shards: str, batch: int, size: int = 0) -> Rounds:
    """Decodes with TensorFlow's exact decoder in tf.data; resizes too if `size` is given."""
    import numpy as np
    import tensorflow as tf

    from pipelines.cpus import count_process_cpus
    from pipelines.input.memory import keep_freed_memory
    from pipelines.input.tfdata import PARALLEL_BATCHES, PREFETCH, decode
    from pipelines.spec import DataSpec

    def decode_one(image: tf.Tensor) -> tf.Tensor:
        if size:
            return decode(image, DataSpec(image_size=(size, size)))
        pixels = tf.io.decode_jpeg(image, 3, dct_method="INTEGER_ACCURATE")
        return tf.shape(pixels)[0]  # keeps the pixels inside TensorFlow

    keep_freed_memory()
    output = tf.TensorSpec((size, size, 3), tf.uint8) if size else tf.TensorSpec((), tf.int32)
    encoded = np.array(read_encoded(shards), object)
    batches = tf.data.Dataset.from_tensor_slices(encoded).batch(batch)
    batches = batches.map(
        lambda images: tf.map_fn(
            decode_one, images, fn_output_signature=output, parallel_iterations=count_process_cpus()
        ),
        num_parallel_calls=PARALLEL_BATCHES,
    )
    yield None
    while True:
        for _ in batches.prefetch(PREFETCH):
            pass
        yield None


def order_and_reader(shards: str, batch: int) -> Rounds:
    """Computes the order and reads the rows with their checksums: everything that precedes decoding."""
    from pipelines.input.order import EpochOrder, OrderSpec
    from pipelines.input.reader import ShardReader

    reader = ShardReader(shards, SPLIT)
    epoch = 0
    yield None
    while True:
        order = EpochOrder(OrderSpec((reader.shard_rows,), batch, SEED), epoch)
        for step in range(order.steps):
            rows = order.find_rows(range(step, step + 1))[0]
            reader.read_images(rows[rows >= 0])
        epoch += 1
        yield None


class _StubPipeline:
    """Takes the place of DALI: receives what a pipeline would decode, and returns the same black images."""

    def __init__(self, source: Iterator[Any], decoder: Any) -> None:
        import numpy as np

        self._source = source
        self._images = np.zeros((decoder.batch, *decoder.data.image_size, decoder.data.channels), np.uint8)

    def schedule_run(self) -> None:
        next(self._source, None)

    def outputs(self) -> tuple[Any]:
        return (self,)

    def as_tensor(self) -> Any:
        return self._images


def feed(
    shards: str, batch: int, augment: dict[str, Any] | None, epochs: int, pipelines: int, **data: Any
) -> Rounds:
    """Does what Python does for DALI: orders, reads, verifies, draws and hands over, without decoding.

    Args:
        shards: Directory of the shard set.
        batch: Images per batch of a pipeline.
        augment: Fields of an `AugmentSpec`, or None for no augmentation.
        epochs: Consecutive epochs per round.
        pipelines: Number of pipelines in this process, one for each device of a host.
        **data: Fields of a `DataSpec`.
    """
    from pipelines.input import dali
    from pipelines.input.batches import Batches
    from pipelines.spec import AugmentSpec, DataSpec

    dali.build_pipeline = _StubPipeline
    spec = AugmentSpec(**augment) if augment else None
    batches = Batches(shards, SPLIT, DataSpec(**data), batch * pipelines, seed=SEED, augment=spec)
    epoch = 0
    yield None
    while True:
        replicas = [
            batches.epoch(epoch, worker=replica, workers=pipelines, epochs=epochs)
            for replica in range(pipelines)
        ]
        for _ in zip(*replicas, strict=True):
            pass
        epoch += epochs
        yield None


def ours(
    shards: str, batch: int, augment: dict[str, Any] | None, epochs: int, devices: int = 1, **data: Any
) -> Rounds:
    """Produces the batches of a training step: float32, augmented on the devices that share them.

    Args:
        shards: Directory of the shard set.
        batch: Images per batch, over all devices.
        augment: Fields of an `AugmentSpec`, or None for no augmentation.
        epochs: Consecutive epochs per round.
        devices: Number of devices; several are logical CPUs, each with its slice of the batch.
        **data: Fields of a `DataSpec`.
    """
    if data.get("backend") == "dali":
        import nvidia.dali  # noqa: F401 (reports a missing DALI as not installed)

    from service.devices import LOGICAL_DEVICES, configure_devices

    if devices > 1:
        os.environ[LOGICAL_DEVICES] = str(devices)
    configure_devices()
    import tensorflow as tf

    from pipelines.augment.apply import apply_augmentations
    from pipelines.input.batches import Batches
    from pipelines.input.cache import CacheBudget
    from pipelines.spec import AugmentSpec, DataSpec
    from service.training.distribute import distribute_batches
    from service.training.strategy import WorkerContext, choose_strategy

    spec = AugmentSpec(**augment) if augment else None
    strategy = choose_strategy(batch)  # as in training
    batches = Batches(
        shards, SPLIT, DataSpec(**data), batch, seed=SEED, augment=spec, cache=CacheBudget(strategy)
    )

    @tf.function
    def step(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        return strategy.run(lambda batch: apply_augmentations(batches.attach(batch), spec)[0], args=(batch,))

    epoch = 0
    yield None
    while True:
        # As in a training, one iterator serves consecutive epochs.
        for features in distribute_batches(strategy, batches, WorkerContext(), epoch, epochs=epochs):
            images = step(features)
        for part in strategy.experimental_local_results(images):
            float(part[0, 0, 0, 0])  # waits until the device has finished
        epoch += epochs
        yield None
