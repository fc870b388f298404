"""Turns a shard set into the batches that training, evaluation and the report read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipelines.augment.decoded_crop import check_crop_cache, is_cropped_while_decoding
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
from pipelines.input.egress import describe_egress
from pipelines.input.footprint import describe_window, measure_need
from pipelines.input.geometry import Boxes, use_windows
from pipelines.input.mix import AnyReader, list_readers, open_reader, read_padded_shapes
from pipelines.input.order import PADDING, EpochOrder, batch_per_worker, identify_copies, steps_per_epoch
from pipelines.input.parts import plan_parts
from pipelines.input.passes import FILL_BATCH, Pass, PassReader, build_fill_order, build_order
from pipelines.input.windows import Rows
from pipelines.records import Batch
from pipelines.remote.claims import check_cache
from pipelines.remote.metrics import StoreMetrics
from pipelines.remote.needs import Need
from pipelines.remote.uri import Location, Uri
from pipelines.spec import AugmentSpec, DataSpec

Record = dict[str, Any]
Records = Callable[[], Iterable[Record]]

SEARCH_ROWS = 1024  # images held in memory while searching for one that cannot be decoded
DRAW_ROWS = 4096  # rows whose augmentation is drawn at a time: a call costs as much as hundreds of rows
BLOCK_BYTES = 4 << 20  # cached images that pass through Python at a time
# Shape without the batch, and dtype, of the arrays of every batch except images and augmentation.
LABEL_TYPES: dict[str, tuple[tuple[int, ...], Any]] = {
    "label": ((), np.int32),
    "weight": ((), np.float32),
    "row": ((), np.int64),
}


class Batches:
    """The batches of one split, epoch by epoch.

    Args:
        shards: Path or URI of the shard set to read from.
        split: Name of a split in its manifest.
        data: Size and channels of the images, decoder, window and lanes of the order, and the sets that are
            mixed in place of the training split.
        global_batch: Examples per step over all workers.
        seed: Seed of the shuffling and the augmentation; None keeps the stored order.
        augment: Ranges of the random parameters; requires a seed.
        cache: Memory that decoded images may take, as `data.cache` says; None for a split that is read once,
            which is not cached.

    Attributes:
        rows: Number of stored examples in the split.
        epoch_rows: Number of examples in an epoch: `rows`, except for a mix with a seed.
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
        shards: Location | str,
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
        self._reader = open_reader(shards, split, data)
        self._data = data
        self._seed = seed
        self._augment = augment
        self.manifest = self._reader.manifest
        self.classes = self.manifest.classes
        self.rows = self._reader.rows
        self.global_batch = global_batch
        self._order = build_order(self._reader, data, global_batch, seed)
        self.epoch_rows = self._order.rows
        self.steps = steps_per_epoch(self.epoch_rows, global_batch)
        # The builder decoded every image if it measured their mean or stored raw pixels.
        has_mean = self.manifest.get_split(split).mean is not None
        self._is_decodable = has_mean or self.manifest.encoding == "raw"
        self._cache = cache or CacheBudget()
        self._is_cropped = is_cropped_while_decoding(augment)
        self.tier = self._choose_tier(cache)
        self._host: Images | None = None
        self._device: DeviceImages | None = None
        self._failure: Exception | None = None
        self._decoding_device: str | None = None
        self._pipelines = 1

    def _choose_tier(self, cache: CacheBudget | None) -> Tier:
        if cache is None:
            return Tier("none", "read once")
        if self._is_cropped:
            check_crop_cache(self._augment, self._data)
            return Tier("none", "augment.crop_at=decode: each epoch decodes other parts of the images")
        return cache.choose(self.rows, self._data)

    @property
    def labels(self) -> NDArray[np.int32]:
        """Class indices of all rows, int32 `[rows]`; read when they are first used."""
        return self._reader.labels

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
        check_cache(self.measure_need(workers), self._data.cache_gb, describe_window(self._data))
        self.fill_cache()
        stop = self.steps if stop_step is None else stop_step
        steps = Pass(self._order, epoch, epochs, start_step, stop, worker, workers)
        batches_per_record = self._choose_batches_per_record(batch)

        def read_records() -> Iterator[Record]:
            return self._read_pass(steps, batch, replicas, batches_per_record)

        count = (epochs * stop - start_step) * replicas
        return self._build_batches(read_records, batch, batches_per_record, count)

    def describe_egress(self, hosts: int, workers: int) -> str | None:
        """Describes what the hosts of a training fetch per epoch from a store; None if that is nothing.

        Args:
            hosts: Number of hosts, each with a cache of its own.
            workers: Number of workers on all hosts.
        """
        remote = [reader for reader in list_readers(self._reader) if isinstance(reader.location, Uri)]
        if not remote or self.tier.name != "none":
            return None
        shard_bytes = np.concatenate([reader.shard_bytes for reader in remote])
        return describe_egress(shard_bytes, hosts, self._data.lanes, workers)

    def measure_need(self, workers: int = 1, passes: int = 1) -> dict[str, Need]:
        """Measures what the cache of remote shards must hold for one of the workers.

        Args:
            workers: Number of workers that share every global batch.
            passes: Number of passes on this machine that read the same shards.

        Returns:
            Needs by location of the shard set; empty for local sets.
        """
        if self.tier.name != "none":
            return measure_need(self._reader, build_fill_order(self._reader))
        return measure_need(self._reader, self._order, workers, passes)

    def _read_pass(self, steps: Pass, batch: int, replicas: int, batches_per_record: int) -> Iterator[Record]:
        """Reads the records of a pass, each with one or several batches."""
        size = batch * batches_per_record
        reading = PassReader(self._reader, steps) if self.tier.name == "none" else None
        try:
            for epoch, first_step, rows, parameters in self._iterate_rows(steps):
                for start in range(0, len(rows), size):
                    part = slice(start, start + size)
                    drawn = {name: values[part] for name, values in parameters.items()}
                    labels = self._build_labels(rows[part])
                    if reading is None:
                        yield labels | drawn | self._read_decoded(rows[part])
                        continue
                    yield from self._read_parts(rows[part], reading.reader, labels | drawn)
                    steps_read = (start + size) // (batch * replicas)
                    if steps_read:
                        reading.finish(epoch, first_step + steps_read - 1)
        finally:
            if reading is not None:
                reading.close()

    def read_store_metrics(self) -> StoreMetrics | None:
        """Returns what was fetched from a store so far; None for local shard sets."""
        return self._reader.metrics()

    def find_rows(self, epoch: int, step: int) -> Rows:
        """Returns the rows of a global batch, int64 `[global_batch]`, -1 for padding."""
        return EpochOrder(self._order, epoch).find_rows(range(step, step + 1))[0]

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
        stored_order = build_fill_order(self._reader)
        steps = steps_per_epoch(self.rows, FILL_BATCH)

        def read_records() -> Iterator[Record]:
            reading = PassReader(self._reader, Pass(stored_order, 0, 1, 0, steps))
            order = EpochOrder(stored_order, 0)
            try:
                for step in range(steps):
                    rows = order.find_rows(range(step, step + 1))[0]
                    yield from self._read_parts(rows, reading.reader, self._build_labels(rows))
                    reading.finish(0, step)
            finally:
                reading.close()

        types = {name: tf.TensorSpec((FILL_BATCH,), dtype) for name, (_, dtype) in LABEL_TYPES.items()}
        with self.data_errors():
            for step, batch in enumerate(self._decode(read_records, types, steps)):
                part = images[step * FILL_BATCH : (step + 1) * FILL_BATCH]
                part[:] = batch["image"][: len(part)]
                self._cache.progress(min((step + 1) * FILL_BATCH, self.rows), self.rows)

    def _choose_batches_per_record(self, batch: int) -> int:
        """Chooses how many batches pass through Python at a time: several, if images are already decoded."""
        if self.tier.name == "none":
            return 1
        image_bytes = 1 if self._host is None else int(np.prod(self._host.shape[1:]))
        return max(1, BLOCK_BYTES // (batch * image_bytes))

    def _iterate_rows(self, steps: Pass) -> Iterator[tuple[int, int, Rows, Record]]:
        """Iterates over the rows of a pass, several steps at a time: epoch, first step, rows, parameters."""
        steps_per_draw = max(1, DRAW_ROWS * steps.workers // self.global_batch)
        for epoch, steps_of_epoch in steps.iterate_steps():
            order = EpochOrder(self._order, epoch)
            for start in range(steps_of_epoch.start, steps_of_epoch.stop, steps_per_draw):
                stop = min(start + steps_per_draw, steps_of_epoch.stop)
                rows = order.find_rows(range(start, stop), steps.worker, steps.workers).reshape(-1)
                parameters: Record = {}
                if self._augment is not None and self._seed is not None:
                    shapes = read_padded_shapes(self._reader, rows) if self._is_cropped else None
                    copies = order.find_copies(range(start, stop), steps.worker, steps.workers).reshape(-1)
                    keys = identify_copies(rows, copies)
                    parameters = draw(self._augment, self._seed, epoch, keys, self._data, shapes)
                yield epoch, start, rows, parameters

    def _build_labels(self, rows: Rows) -> Record:
        """Builds label, weight and row of some rows, of which the last ones may be padding."""
        real = rows[rows != PADDING]
        # Those of all rows need far less memory than their decoded images.
        found = self._reader.read_labels(real) if self.tier.name == "none" else self.labels[real]
        label = np.pad(found, (0, len(rows) - len(real)))
        return {"label": label, "weight": (rows != PADDING).astype(np.float32), "row": rows}

    def _read_decoded(self, rows: Rows) -> Record:
        """Reads the decoded images of some rows, unless they are attached on the device."""
        return {} if self._host is None else {"image": gather_images(self._host, rows)}

    def _read_parts(self, rows: Rows, reader: AnyReader, arrays: Record) -> Iterator[Record]:
        """Reads the stored images of a batch, and their shapes, in parts that fit into the budget.

        Args:
            rows: Rows of the batch, of which the last ones may be padding.
            reader: Reader for these rows.
            arrays: Arrays of the batch, `[B, ...]`, which are divided in the same way.
        """
        shapes = read_padded_shapes(reader, rows)
        for part in plan_parts(shapes, self._data.channels, self._data.decode_gb * 1e9):
            record = {name: values[part] for name, values in arrays.items()}
            real = rows[part][rows[part] != PADDING]
            yield record | {"encoded": reader.read_images(real), "shape": shapes[part]}

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
        data = self._data
        if self._is_cropped and self._augment is not None:
            data = use_windows(data, self._augment.size)
        if dali.is_selected(data, self._is_decodable):
            threads = max(1, count_process_cpus() // self._pipelines)
            batch = types["row"].shape[0]
            return dali.decode_batches(records, data, batch, encoding, self._decoding_device, threads)
        return tfdata.decode_batches(self._remember_failure(records), types, data, encoding, steps)

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


def read_rows(
    shards: Location | str, split: str, data: DataSpec, rows: Sequence[int], windows: Boxes | None = None
) -> Batch:
    """Reads some rows of a split as one batch of NumPy arrays, decoded by tf.data.

    Args:
        shards: Path or URI of the shard set to read from.
        split: Name of a split in its manifest.
        data: Size and channels of the images; with a mix, the training rows are those of all its sets.
        rows: Row numbers, in any order.
        windows: Part of each image that becomes the result, int32 `[n, 4]`; None to fit whole images.

    Raises:
        DataError: The shard set cannot be used, a row does not exist, or an image cannot be decoded.
    """
    reader = open_reader(shards, split, data)
    stored = reader.read_images(rows)
    try:
        images = tfdata.decode_all(stored, reader.read_shapes(rows), data, reader.manifest.encoding, windows)
    except tf.errors.InvalidArgumentError:
        _check_decodable(reader, rows, data)
        raise
    numbers = np.asarray(rows, np.int64)
    weight = np.ones(len(numbers), np.float32)
    return Batch(image=images, label=reader.read_labels(numbers), weight=weight, row=numbers)


def _check_decodable(reader: AnyReader, rows: Sequence[int], data: DataSpec) -> None:
    """Checks that some rows can be read and decoded.

    Raises:
        DataError: A row cannot be read or decoded; names the first such row.
    """
    shapes = reader.read_shapes(rows)
    index = tfdata.find_undecodable(reader.read_images(rows), shapes, data, reader.manifest.encoding)
    if index is not None:
        raise _describe_undecodable(reader, rows[index]) from None


def _describe_undecodable(reader: AnyReader, row: int) -> DataError:
    (name,) = reader.read_ids([row])
    fix = "repair or remove this image and build the shard set again"
    return DataError(f"images of split {reader.split!r} that can be decoded", f"row={row} id={name}", fix)
