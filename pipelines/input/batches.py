"""The batches of a shard set: what training, evaluation and the report read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tensorflow as tf

from pipelines.augment.draw import draw_affine
from pipelines.errors import ConfigError, DataError
from pipelines.input import tfdata
from pipelines.input.order import PADDING, Rows, check_seed, epoch_order, global_batch_rows, per_worker, steps_per_epoch, worker_slice
from pipelines.input.reader import ShardReader
from pipelines.records import Batch
from pipelines.spec import AugmentSpec, DataSpec

SEARCH_ROWS = 1024  # images held in memory while looking for one that cannot be decoded


class Batches:
    """One split as batches, epoch by epoch.

    Args:
        shards: The shard set.
        split: Which split.
        data: Size and channels of the images.
        global_batch: Examples per step over all workers.
        seed: Which shuffling; None keeps the stored order.
        augment: Ranges of the random affine parameters; needs a seed.

    Attributes:
        rows: Number of examples.
        steps: Steps per epoch.
        classes: Class names.
        manifest: The manifest of the shard set.

    Raises:
        ConfigError: The batch or the seed makes no sense.
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
    ) -> None:
        if augment is not None and seed is None:
            raise ConfigError("a seed where images are augmented", "seed=None", "set a seed")
        if seed is not None:
            check_seed(seed)
        self._reader = ShardReader(shards, split)
        self._data, self._global_batch, self._seed, self._augment = data, global_batch, seed, augment
        self.manifest = self._reader.manifest
        self.classes = self.manifest.classes
        self.rows = self._reader.rows
        self.steps = steps_per_epoch(self.rows, global_batch)

    def epoch(self, epoch: int, start_step: int = 0, worker: int = 0, workers: int = 1) -> tf.data.Dataset:
        """One worker's batches of an epoch, from some step on.

        Args:
            epoch: Which epoch, from 0.
            start_step: The first step wanted; what lies before is neither read nor decoded.
            worker: Which worker, from 0.
            workers: How many workers share every global batch; each takes a contiguous slice of it.

        Returns:
            `steps - start_step` batches (see `pipelines.records.Batch`) of `B = global_batch // workers`
            examples; `affine` is there where augmentation is on. Iterate inside `data_errors`.

        Raises:
            ConfigError: The batch cannot be shared out evenly.
        """
        batch = per_worker(self._global_batch, workers)

        def records() -> Iterator[Batch]:
            order = epoch_order(self.rows, self._seed, epoch)
            for step in range(start_step, self.steps):
                yield self._record(epoch, worker_slice(global_batch_rows(order, step, self._global_batch), worker, workers))

        return tfdata.decoded_batches(records, self._signature(batch), self._data, max(0, self.steps - start_step))

    @contextmanager
    def data_errors(self) -> Iterator[None]:
        """Turns the failure to decode an image, within the block, into an error that names it.

        Looking for the image decodes the split once more, in the stored order, up to the image at fault.

        Raises:
            DataError: An image cannot be decoded; names split, row and id.
        """
        try:
            yield
        except tf.errors.InvalidArgumentError:
            for start in range(0, self.rows, SEARCH_ROWS):
                _check(self._reader, range(start, min(start + SEARCH_ROWS, self.rows)), self._data)
            raise  # the images are fine: something else went wrong

    def _record(self, epoch: int, rows: Rows) -> Batch:
        """The encoded batch of some rows, of which the last ones may be padding."""
        real = rows[rows != PADDING]
        padding = len(rows) - len(real)
        record = Batch(
            image=np.array(self._reader.images(real) + [b""] * padding, object),
            label=np.pad(self._reader.labels[real], (0, padding)),
            weight=(rows != PADDING).astype(np.float32),
            row=rows,
        )
        if self._augment is not None and self._seed is not None:
            height, width = self._data.image_size
            record["affine"] = draw_affine(self._augment, self._seed, epoch, rows, width / height)
        return record

    def _signature(self, batch: int) -> dict[str, tf.TensorSpec]:
        types = {"image": tf.string, "label": tf.int32, "weight": tf.float32, "row": tf.int64}
        signature = {name: tf.TensorSpec((batch,), dtype) for name, dtype in types.items()}
        if self._augment is not None:
            signature["affine"] = tf.TensorSpec((batch, 2, 3), tf.float32)
        return signature


def read_rows(shards: Path | str, split: str, data: DataSpec, rows: Sequence[int]) -> Batch:
    """Some rows of a split as one batch of NumPy arrays.

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
        decoded = tfdata.decode_all(images, data)
    except tf.errors.InvalidArgumentError:
        _check(reader, rows, data)
        raise
    numbers = np.asarray(rows, np.int64)
    return Batch(image=decoded, label=reader.labels[numbers], weight=np.ones(len(numbers), np.float32), row=numbers)


def _check(reader: ShardReader, rows: Sequence[int], data: DataSpec) -> None:
    """Raises the error that names the first of some rows that cannot be decoded."""
    place = tfdata.first_undecodable(reader.images(rows), data)
    if place is None:
        return
    row = rows[place]
    (name,) = reader.ids([row])
    raise DataError(
        f"images of split {reader.split!r} that can be decoded",
        f"row={row} id={name}",
        "repair or remove this image and build the shard set again",
    ) from None
