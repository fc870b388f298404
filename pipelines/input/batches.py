"""The batches of a shard set: what training, evaluation and the report read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.augment.draw import check_batch, draw, signature
from pipelines.errors import ConfigError, DataError
from pipelines.input import dali, tfdata
from pipelines.input.cache import Cache, DeviceImages, Images, Tier, gathered
from pipelines.input.order import (
    PADDING,
    Rows,
    check_seed,
    epoch_order,
    global_batch_rows,
    per_worker,
    steps_per_epoch,
    worker_slice,
)
from pipelines.input.reader import ShardReader
from pipelines.records import Batch
from pipelines.spec import AugmentSpec, DataSpec

Record = dict[str, Any]
Records = Callable[[], Iterable[Record]]

SEARCH_ROWS = 1024  # images held in memory while looking for one that cannot be decoded
DRAW_ROWS = 4096  # rows whose augmentation is drawn at a time: a call costs as much as hundreds of rows
BLOCK_BYTES = 4 << 20  # of cached images that pass through Python at a time
FILL_BATCH = 64  # images decoded at a time while a cache is filled
LABELS: dict[str, tuple[tuple[int, ...], Any]] = {
    "label": ((), np.int32),
    "weight": ((), np.float32),
    "row": ((), np.int64),
}


class Batches:
    """One split as batches, epoch by epoch.

    Args:
        shards: The shard set.
        split: Which split.
        data: Size and channels of the images, what decodes them, in which window they are shuffled.
        global_batch: Examples per step over all workers.
        seed: Which shuffling; None keeps the stored order.
        augment: Ranges of the random parameters; needs a seed.
        cache: Memory that decoded images may take, as `data.cache` says; None for a split that is read once: it caches nothing.

    Attributes:
        rows: Number of examples.
        labels: int32 `[rows]`.
        steps: Steps per epoch.
        classes: Class names.
        manifest: The manifest of the shard set.
        tier: Where decoded images are kept, and why. The first epoch fills it.

    Raises:
        ConfigError: The batch or the seed makes no sense, or the cache asked for does not fit.
        DataError: The shard set cannot be used.
    """

    def __init__(
        self,
        shards: Path | str,
        split: str,
        data: DataSpec,
        global_batch: int,
        *,
        seed: int | None = None,
        augment: AugmentSpec | None = None,
        cache: Cache | None = None,
    ) -> None:
        if augment is not None and seed is None:
            raise ConfigError("a seed where images are augmented", "seed=None", "set a seed")
        if seed is not None:
            check_seed(seed)
        self._reader = ShardReader(shards, split)
        self._data, self.global_batch, self._seed, self._augment = data, global_batch, seed, augment
        self.manifest = self._reader.manifest
        self.classes, self.rows, self.labels = self.manifest.classes, self._reader.rows, self._reader.labels
        self.steps = steps_per_epoch(self.rows, global_batch)
        self._decodable = self.manifest.split(split).mean is not None or self.manifest.encoding == "raw"
        self._cache = cache or Cache()
        self.tier = cache.choose(self.rows, data) if cache else Tier("none", "read once")
        self._host: Images | None = None
        self._device: DeviceImages | None = None
        self._failure: Exception | None = None

    @property
    def eager(self) -> bool:
        """Whether `epoch` gives eager tensors instead of a `tf.data.Dataset`: DALI does, which is no part of a graph."""
        return self.tier.name == "none" and dali.wanted(self._data, self._decodable)

    def epoch(
        self,
        epoch: int,
        start_step: int = 0,
        worker: int = 0,
        workers: int = 1,
        replicas: int = 1,
        epochs: int = 1,
        stop_step: int | None = None,
    ) -> Iterable[Batch]:
        """One worker's batches of an epoch, from some step on, and of those that follow it.

        Args:
            epoch: Which epoch, from 0.
            start_step: The first step wanted; what lies before is neither read nor decoded.
            worker: Which worker, from 0.
            workers: How many workers share every global batch; each takes a contiguous slice of it.
            replicas: Into how many batches that slice is cut, one after the other: one for each device of the worker.
            epochs: How many epochs in a row; one iterator over many spares each the time to start.
            stop_step: The first step of every epoch not wanted any more; None for all.

        Returns:
            `(epochs * stop_step - start_step) * replicas` batches (see `pipelines.records.Batch`) of
            `B = global_batch // (workers * replicas)` examples, with the parameters of augmentation where it is on.
            A `tf.data.Dataset`, but where `eager`: then an iterator.
            With tier `device` the batches have no `image`: give them to `attach`. Iterate inside `data_errors`.

        Raises:
            ConfigError: The batch cannot be shared out evenly, or what is to decode cannot.
            DataError: A cache is filled, and an image cannot be read.
        """
        batch = per_worker(self.global_batch, workers * replicas)
        if self._augment is not None:
            check_batch(self._augment, batch)
        self.prepare()
        stop = self.steps if stop_step is None else stop_step
        image = 1 if self._host is None else int(np.prod(self._host.shape[1:]))
        at_once = 1 if self.tier.name == "none" else max(1, BLOCK_BYTES // (batch * image))
        size = batch * at_once

        def records() -> Iterator[Record]:
            for n in range(epochs):
                for rows, drawn in self._places(
                    epoch + n, range(0 if n else start_step, stop), worker, workers
                ):
                    for at in range(0, len(rows), size):
                        own = {name: values[at : at + size] for name, values in drawn.items()}
                        yield self._labelled(rows[at : at + size]) | own | self._images(rows[at : at + size])

        return self._batches(records, batch, at_once, (epochs * stop - start_step) * replicas)

    def rows_of(self, epoch: int, step: int) -> Rows:
        """The rows of a global batch, int64 `[global_batch]`, -1 where it is padding."""
        return global_batch_rows(self._order(epoch), step, self.global_batch)

    def attach(self, batch: Batch) -> Batch:
        """Adds the images to a batch whose images lie on the devices; any other stays as it is. Call it in the step of a replica."""
        return batch if self._device is None or "image" in batch else self._device.attach(batch)

    @contextmanager
    def data_errors(self) -> Iterator[None]:
        """Turns the failure to read or decode an image, within the block, into an error that names it.

        Looking for the image decodes the split once more, in the stored order, up to the image at fault.

        Raises:
            DataError: An image cannot be read or decoded; names split, row and id.
        """
        try:
            yield
        except tf.errors.OpError as error:
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure from None
            if not isinstance(error, tf.errors.InvalidArgumentError):
                raise
            if isinstance(error, dali.UndecodableError):
                raise _undecodable(self._reader, error.row) from None
            for at in range(0, self.rows, SEARCH_ROWS):
                _check(self._reader, range(at, min(at + SEARCH_ROWS, self.rows)), self._data)
            raise  # the images are fine: something else went wrong

    def _order(self, epoch: int) -> Rows:
        return epoch_order(self.rows, self._seed, epoch, self._reader.shard_rows, self._data.window)

    def _places(self, epoch: int, steps: range, worker: int, workers: int) -> Iterator[tuple[Rows, Record]]:
        """This worker's rows of some steps at a time, and what is drawn for them."""
        order = self._order(epoch)
        at_once = max(1, DRAW_ROWS * workers // self.global_batch)
        for start in range(steps.start, steps.stop, at_once):
            block = range(start, min(start + at_once, steps.stop))
            rows = np.concatenate(
                [
                    worker_slice(global_batch_rows(order, step, self.global_batch), worker, workers)
                    for step in block
                ]
            )
            yield (
                rows,
                {}
                if self._augment is None or self._seed is None
                else draw(self._augment, self._seed, epoch, rows, self._data),
            )

    def _labelled(self, rows: Rows) -> Record:
        """Label, weight and row of some rows, of which the last ones may be padding."""
        real = rows[rows != PADDING]
        label = np.pad(self.labels[real], (0, len(rows) - len(real)))
        return {"label": label, "weight": (rows != PADDING).astype(np.float32), "row": rows}

    def _images(self, rows: Rows) -> Record:
        """The images of some rows as the tier has them."""
        if self.tier.name == "device":
            return {}
        return self._stored(rows) if self._host is None else {"image": gathered(self._host, rows)}

    def _stored(self, rows: Rows) -> Record:
        """The stored images of some rows, and the shapes of those, filled up with zeros."""
        real = rows[rows != PADDING]
        shapes = np.pad(self._reader.shapes(real), ((0, len(rows) - len(real)), (0, 0)))
        return {"encoded": self._reader.images(real), "shape": shapes}

    def _batches(self, records: Records, batch: int, at_once: int, steps: int) -> Iterable[Batch]:
        """Records as batches: decoded, or cut into batches where the images already are and `at_once` batches make a record."""
        types = self._signature(batch)
        if self._host is None and self._device is None:
            return self._decoded(records, types, steps)
        if self._host is not None:
            types["image"] = tf.TensorSpec((batch, *self._host.shape[1:]), tf.uint8)

        if at_once == 1:  # cutting would copy the images once more
            return tfdata.finished(
                tf.data.Dataset.from_generator(self._watched(records), output_signature=types), steps
            )

        def blocks() -> Iterator[Record]:
            for record in records():
                yield {
                    name: values.reshape(-1, batch, *values.shape[1:]) for name, values in record.items()
                }  # [blocks, B, ...]

        block = {name: tf.TensorSpec((None, *of.shape), of.dtype) for name, of in types.items()}
        return tfdata.finished(
            tf.data.Dataset.from_generator(self._watched(blocks), output_signature=block).unbatch(), steps
        )

    def _decoded(self, records: Records, types: dict[str, tf.TensorSpec], steps: int) -> Iterable[Batch]:
        if dali.wanted(self._data, self._decodable):
            return dali.decoded_batches(records, self._data, types["row"].shape[0], self.manifest.encoding)
        return tfdata.decoded_batches(
            self._watched(records), types, self._data, self.manifest.encoding, steps
        )

    def _watched(self, records: Records) -> Records:
        """The same records; keeps the error that ends them, of which TensorFlow passes on only the text."""

        def watched() -> Iterator[Record]:
            try:
                yield from records()
            except Exception as error:
                self._failure = error
                raise

        return watched

    def _signature(self, batch: int) -> dict[str, tf.TensorSpec]:
        types = LABELS if self._augment is None else LABELS | signature(self._augment, self._data)
        return {name: tf.TensorSpec((batch, *shape), dtype) for name, (shape, dtype) in types.items()}

    def prepare(self) -> None:
        """Decodes the whole split into the cache, where there is one and it is empty.

        Raises:
            DataError: An image cannot be read.
        """
        if self.tier.name == "none" or self._host is not None or self._device is not None:
            return
        images = np.zeros((self.rows, *self._data.image_size, self._data.channels), np.uint8)
        order, steps = np.arange(self.rows), steps_per_epoch(self.rows, FILL_BATCH)

        def records() -> Iterator[Record]:
            for step in range(steps):
                rows = global_batch_rows(order, step, FILL_BATCH)
                yield self._labelled(rows) | self._stored(rows)

        types = {name: tf.TensorSpec((FILL_BATCH,), dtype) for name, (_, dtype) in LABELS.items()}
        with self.data_errors():
            for step, batch in enumerate(self._decoded(records, types, steps)):
                part = images[step * FILL_BATCH : (step + 1) * FILL_BATCH]
                part[:] = batch["image"][: len(part)]
                self._cache.progress(min((step + 1) * FILL_BATCH, self.rows), self.rows)
        if self.tier.name == "host":
            self._host = images
        else:
            self._device = DeviceImages(self._cache.strategy, images, self.tier.sharded)


def read_rows(shards: Path | str, split: str, data: DataSpec, rows: Sequence[int]) -> Batch:
    """Some rows of a split as one batch of NumPy arrays, decoded by tf.data.

    Args:
        shards: The shard set.
        split: Which split.
        data: Size and channels of the images.
        rows: Which rows, in any order.

    Raises:
        DataError: The shard set cannot be used, there is no such row, or an image cannot be decoded.
    """
    reader = ShardReader(shards, split)
    images = reader.images(rows)
    try:
        decoded = tfdata.decode_all(images, reader.shapes(rows), data, reader.manifest.encoding)
    except tf.errors.InvalidArgumentError:
        _check(reader, rows, data)
        raise
    numbers = np.asarray(rows, np.int64)
    return Batch(
        image=decoded, label=reader.labels[numbers], weight=np.ones(len(numbers), np.float32), row=numbers
    )


def _check(reader: ShardReader, rows: Sequence[int], data: DataSpec) -> None:
    """Raises the error that names the first of some rows that cannot be read or decoded."""
    place = tfdata.first_undecodable(reader.images(rows), reader.shapes(rows), data, reader.manifest.encoding)
    if place is not None:
        raise _undecodable(reader, rows[place]) from None


def _undecodable(reader: ShardReader, row: int) -> DataError:
    (name,) = reader.ids([row])
    fix = "repair or remove this image and build the shard set again"
    return DataError(f"images of split {reader.split!r} that can be decoded", f"row={row} id={name}", fix)
