"""Turns a shard set into the batches that training, evaluation and the report read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.augment.draw import check_batch, draw, signature
from pipelines.cpus import count_process_cpus
from pipelines.errors import ConfigError, DataError
from pipelines.input import dali, tfdata
from pipelines.input.cache import (
    CacheBudget,
    DeviceImages,
    Images,
    Tier,
    allocate_words,
    gather_images,
    view_images,
)
from pipelines.input.order import (
    PADDING,
    Rows,
    batch_per_worker,
    check_seed,
    epoch_order,
    global_batch_rows,
    steps_per_epoch,
    worker_slice,
)
from pipelines.input.reader import ShardReader
from pipelines.records import Batch
from pipelines.spec import AugmentSpec, DataSpec

Record = dict[str, Any]
Records = Callable[[], Iterable[Record]]

SEARCH_ROWS = 1024  # images held in memory while searching for one that cannot be decoded
DRAW_ROWS = 4096  # rows whose augmentation is drawn at a time: a call costs as much as hundreds of rows
BLOCK_BYTES = 4 << 20  # cached images that pass through Python at a time
FILL_BATCH = 64  # images decoded at a time while a cache is filled
# Shape without the batch, and dtype, of the arrays of every batch except images and augmentation.
LABEL_TYPES: dict[str, tuple[tuple[int, ...], Any]] = {
    "label": ((), np.int32),
    "weight": ((), np.float32),
    "row": ((), np.int64),
}


class Batches:
    """The batches of one split, epoch by epoch.

    Args:
        shards: Shard set to read from.
        split: Name of a split in its manifest.
        data: Size and channels of the images, decoder, and shuffling window.
        global_batch: Examples per step over all workers.
        seed: Seed of the shuffling and the augmentation; None keeps the stored order.
        augment: Ranges of the random parameters; requires a seed.
        cache: Memory that decoded images may take, as `data.cache` says; None for a split that is read once,
            which is not cached.

    Attributes:
        rows: Number of examples in the split.
        labels: Class indices of all rows, int32 `[rows]`.
        steps: Number of steps per epoch.
        classes: Names of the classes, by index.
        manifest: The manifest of the shard set.
        global_batch: Examples per step over all workers.
        tier: Memory that holds the decoded images, and the reason. The first epoch fills it.

    Raises:
        ConfigError: The batch or the seed is out of range, or the requested cache does not fit.
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
        cache: CacheBudget | None = None,
    ) -> None:
        if augment is not None and seed is None:
            raise ConfigError("a seed where images are augmented", "seed=None", "set a seed")
        if seed is not None:
            check_seed(seed)
        self._reader = ShardReader(shards, split)
        self._data = data
        self._seed = seed
        self._augment = augment
        self.manifest = self._reader.manifest
        self.classes = self.manifest.classes
        self.rows = self._reader.rows
        self.labels = self._reader.labels
        self.global_batch = global_batch
        self.steps = steps_per_epoch(self.rows, global_batch)
        # The builder decoded every image if it measured their mean or stored raw pixels.
        has_mean = self.manifest.get_split(split).mean is not None
        self._is_decodable = has_mean or self.manifest.encoding == "raw"
        self._cache = cache or CacheBudget()
        self.tier = cache.choose(self.rows, data) if cache else Tier("none", "read once")
        self._host: Images | None = None
        self._device: DeviceImages | None = None
        self._failure: Exception | None = None
        self._decoding_device: str | None = None
        self._pipelines = 1

    def for_replica(self, device: str, replicas: int) -> Batches:
        """Returns the same batches for one of several replicas of this worker, where DALI decodes.

        Args:
            device: Name of the device that decodes, and holds the batches.
            replicas: Number of replicas of this worker, which share its cores.
        """
        batches = copy.copy(self)
        batches._decoding_device = device
        batches._pipelines = replicas
        return batches

    @property
    def is_eager(self) -> bool:
        """Whether `epoch` returns eager tensors instead of a `tf.data.Dataset`, as with DALI."""
        return self.tier.name == "none" and dali.is_selected(self._data, self._is_decodable)

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
        """Returns the batches of one worker for one or several epochs, starting at any step.

        Args:
            epoch: Number of the first epoch, from 0.
            start_step: First step of the first epoch; earlier steps are neither read nor decoded.
            worker: Rank of the worker, from 0.
            workers: Number of workers that share every global batch; each takes a contiguous slice of it.
            replicas: Number of batches that the slice is divided into: one for each device of the worker.
            epochs: Number of epochs in a row; one iterator over many saves the time to start each.
            stop_step: Step before which every epoch ends; None for all steps.

        Returns:
            `(epochs * stop_step - start_step) * replicas` batches (see `pipelines.records.Batch`) of
            `B = global_batch // (workers * replicas)` examples, with the parameters of augmentation if it is
            on. A `tf.data.Dataset`, or an iterator if `is_eager`. With tier `device`, the batches have no
            `image`: pass them to `attach`. Iterate inside `data_errors`.

        Raises:
            ConfigError: The batch cannot be divided evenly, or the requested decoder cannot be used.
            DataError: A cache is filled, and an image cannot be read.
        """
        batch = batch_per_worker(self.global_batch, workers * replicas)
        if self._augment is not None:
            check_batch(self._augment, batch)
        self.fill_cache()
        stop = self.steps if stop_step is None else stop_step
        batches_per_record = self._choose_batches_per_record(batch)
        size = batch * batches_per_record

        def read_records() -> Iterator[Record]:
            for current in range(epoch, epoch + epochs):
                steps = range(start_step if current == epoch else 0, stop)
                for rows, parameters in self._iterate_rows(current, steps, worker, workers):
                    for start in range(0, len(rows), size):
                        part = slice(start, start + size)
                        drawn = {name: values[part] for name, values in parameters.items()}
                        yield self._build_labels(rows[part]) | drawn | self._read_images(rows[part])

        count = (epochs * stop - start_step) * replicas
        return self._build_batches(read_records, batch, batches_per_record, count)

    def find_rows(self, epoch: int, step: int) -> Rows:
        """Returns the rows of a global batch, int64 `[global_batch]`, -1 for padding."""
        return global_batch_rows(self._order(epoch), step, self.global_batch)

    def attach(self, batch: Batch) -> Batch:
        """Adds the images to a batch if they are in device memory. Call it in the step of a replica."""
        if self._device is None or "image" in batch:
            return batch
        return self._device.attach(batch)

    @contextmanager
    def data_errors(self) -> Iterator[None]:
        """Turns failures to read or decode an image, within the block, into an error that names the image.

        To find the image, the split is decoded once more, in the stored order, up to that image.

        Raises:
            DataError: An image cannot be read or decoded; names split, row and id.
        """
        try:
            yield
        except tf.errors.OpError as error:
            failure = self._failure
            self._failure = None
            if failure is not None:
                raise failure from None
            if not isinstance(error, tf.errors.InvalidArgumentError):
                raise
            if isinstance(error, dali.UndecodableError):
                raise _describe_undecodable(self._reader, error.row) from None
            for start in range(0, self.rows, SEARCH_ROWS):
                rows = range(start, min(start + SEARCH_ROWS, self.rows))
                _check_decodable(self._reader, rows, self._data)
            raise  # all images can be decoded: something else went wrong

    def fill_cache(self) -> None:
        """Decodes the whole split into the cache, if it has one and it is empty.

        Raises:
            DataError: An image cannot be read or decoded.
        """
        if self.tier.name == "none" or self._host is not None or self._device is not None:
            return
        shape = (*self._data.image_size, self._data.channels)
        if self.tier.name == "host":
            images = np.zeros((self.rows, *shape), np.uint8)
            self._decode_split(images)
            self._host = images
        else:
            words = allocate_words(self.rows, shape)
            self._decode_split(view_images(words, shape))
            self._device = DeviceImages(self._cache.strategy, words, shape, self.tier.is_sharded)

    def _decode_split(self, images: Images) -> None:
        """Decodes all images of the split into an array, uint8 `[rows, H, W, C]`."""
        stored_order = np.arange(self.rows)
        steps = steps_per_epoch(self.rows, FILL_BATCH)

        def read_records() -> Iterator[Record]:
            for step in range(steps):
                rows = global_batch_rows(stored_order, step, FILL_BATCH)
                yield self._build_labels(rows) | self._read_stored(rows)

        types = {name: tf.TensorSpec((FILL_BATCH,), dtype) for name, (_, dtype) in LABEL_TYPES.items()}
        with self.data_errors():
            for step, batch in enumerate(self._decode(read_records, types, steps)):
                part = images[step * FILL_BATCH : (step + 1) * FILL_BATCH]
                part[:] = batch["image"][: len(part)]
                self._cache.progress(min((step + 1) * FILL_BATCH, self.rows), self.rows)

    def _order(self, epoch: int) -> Rows:
        return epoch_order(self.rows, self._seed, epoch, self._reader.shard_rows, self._data.window)

    def _choose_batches_per_record(self, batch: int) -> int:
        """Chooses how many batches pass through Python at a time: several, if images are already decoded."""
        if self.tier.name == "none":
            return 1
        image_bytes = 1 if self._host is None else int(np.prod(self._host.shape[1:]))
        return max(1, BLOCK_BYTES // (batch * image_bytes))

    def _iterate_rows(
        self, epoch: int, steps: range, worker: int, workers: int
    ) -> Iterator[tuple[Rows, Record]]:
        """Iterates over this worker's rows, several steps at a time, and the parameters drawn for them."""
        order = self._order(epoch)
        steps_per_draw = max(1, DRAW_ROWS * workers // self.global_batch)
        for start in range(steps.start, steps.stop, steps_per_draw):
            slices = []
            for step in range(start, min(start + steps_per_draw, steps.stop)):
                batch_rows = global_batch_rows(order, step, self.global_batch)
                slices.append(worker_slice(batch_rows, worker, workers))
            rows = np.concatenate(slices)
            parameters: Record = {}
            if self._augment is not None and self._seed is not None:
                parameters = draw(self._augment, self._seed, epoch, rows, self._data)
            yield rows, parameters

    def _build_labels(self, rows: Rows) -> Record:
        """Builds label, weight and row of some rows, of which the last ones may be padding."""
        real = rows[rows != PADDING]
        label = np.pad(self.labels[real], (0, len(rows) - len(real)))
        return {"label": label, "weight": (rows != PADDING).astype(np.float32), "row": rows}

    def _read_images(self, rows: Rows) -> Record:
        """Reads the images of some rows as the tier holds them."""
        if self.tier.name == "device":
            return {}
        if self._host is not None:
            return {"image": gather_images(self._host, rows)}
        return self._read_stored(rows)

    def _read_stored(self, rows: Rows) -> Record:
        """Reads the stored images of some rows, and their shapes, padded with zeros."""
        real = rows[rows != PADDING]
        shapes = np.pad(self._reader.read_shapes(real), ((0, len(rows) - len(real)), (0, 0)))
        return {"encoded": self._reader.read_images(real), "shape": shapes}

    def _build_batches(
        self, records: Records, batch: int, batches_per_record: int, count: int
    ) -> Iterable[Batch]:
        """Builds batches: decodes records, or divides those that hold several batches of decoded images."""
        types = self._signature(batch)
        if self._host is None and self._device is None:
            return self._decode(records, types, count)
        if self._host is not None:
            types["image"] = tf.TensorSpec((batch, *self._host.shape[1:]), tf.uint8)

        records = self._remember_failure(records)
        if batches_per_record == 1:  # dividing would copy the images once more
            dataset = tf.data.Dataset.from_generator(records, output_signature=types)
            return tfdata.configure_dataset(dataset, count)

        def split_records() -> Iterator[Record]:
            for record in records():
                # [batches * B, ...] -> [batches, B, ...]
                yield {name: values.reshape(-1, batch, *values.shape[1:]) for name, values in record.items()}

        stacked = {name: tf.TensorSpec((None, *spec.shape), spec.dtype) for name, spec in types.items()}
        dataset = tf.data.Dataset.from_generator(split_records, output_signature=stacked).unbatch()
        return tfdata.configure_dataset(dataset, count)

    def _decode(self, records: Records, types: dict[str, tf.TensorSpec], steps: int) -> Iterable[Batch]:
        encoding = self.manifest.encoding
        if dali.is_selected(self._data, self._is_decodable):
            threads = max(1, count_process_cpus() // self._pipelines)
            batch = types["row"].shape[0]
            return dali.decode_batches(records, self._data, batch, encoding, self._decoding_device, threads)
        return tfdata.decode_batches(self._remember_failure(records), types, self._data, encoding, steps)

    def _remember_failure(self, records: Records) -> Records:
        """Wraps records to store an error they raise, because TensorFlow passes on only its text."""

        def read_records() -> Iterator[Record]:
            try:
                yield from records()
            except Exception as error:
                self._failure = error
                raise

        return read_records

    def _signature(self, batch: int) -> dict[str, tf.TensorSpec]:
        types = dict(LABEL_TYPES)
        if self._augment is not None:
            types |= signature(self._augment, self._data)
        return {name: tf.TensorSpec((batch, *shape), dtype) for name, (shape, dtype) in types.items()}


def read_rows(shards: Path | str, split: str, data: DataSpec, rows: Sequence[int]) -> Batch:
    """Reads some rows of a split as one batch of NumPy arrays, decoded by tf.data.

    Args:
        shards: Shard set to read from.
        split: Name of a split in its manifest.
        data: Size and channels of the images.
        rows: Row numbers, in any order.

    Raises:
        DataError: The shard set cannot be used, a row does not exist, or an image cannot be decoded.
    """
    reader = ShardReader(shards, split)
    stored = reader.read_images(rows)
    try:
        images = tfdata.decode_all(stored, reader.read_shapes(rows), data, reader.manifest.encoding)
    except tf.errors.InvalidArgumentError:
        _check_decodable(reader, rows, data)
        raise
    numbers = np.asarray(rows, np.int64)
    weight = np.ones(len(numbers), np.float32)
    return Batch(image=images, label=reader.labels[numbers], weight=weight, row=numbers)


def _check_decodable(reader: ShardReader, rows: Sequence[int], data: DataSpec) -> None:
    """Checks that some rows can be read and decoded.

    Raises:
        DataError: A row cannot be read or decoded; names the first such row.
    """
    shapes = reader.read_shapes(rows)
    index = tfdata.find_undecodable(reader.read_images(rows), shapes, data, reader.manifest.encoding)
    if index is not None:
        raise _describe_undecodable(reader, rows[index]) from None


def _describe_undecodable(reader: ShardReader, row: int) -> DataError:
    (name,) = reader.read_ids([row])
    fix = "repair or remove this image and build the shard set again"
    return DataError(f"images of split {reader.split!r} that can be decoded", f"row={row} id={name}", fix)
