"""What a saved model is asked about: batches of a shard set, or straight from a source."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import tensorflow as tf

from pipelines.input import tfdata
from pipelines.input.batches import Batches
from pipelines.input.reader import ShardReader
from pipelines.records import Record, Rejected
from pipelines.shards.manifest import load_manifest
from pipelines.shards.task import prepared
from pipelines.sources import Source
from pipelines.spec import DataSpec, ShardSpec

T = TypeVar("T")
U = TypeVar("U")

BATCH = 64
AS_SHARDS = ShardSpec()  # images straight from a source look as they would out of shards
UNDECODABLE = "cannot be decoded"


class Block(NamedTuple):
    """Rows `start` to `stop` of a split; `start` is a multiple of `BATCH`."""

    split: str
    start: int
    stop: int


class InferenceBatch(NamedTuple):
    """One batch.

    Attributes:
        images: uint8 `[BATCH, H, W, C]`, the n real ones first.
        labels: int32 `[n]`, -1 where unknown.
        ids: Of the n images.
        rejected: What stands between them and cannot be decoded.
    """

    images: Any
    labels: np.ndarray
    ids: list[str]
    rejected: list[Rejected]


class ImageDataset(Protocol):
    """Images in a fixed order. Must be picklable."""

    def rows(self) -> Mapping[str, int]:
        """Number of candidates per split, in a fixed order."""

    def batches(self, block: Block, data: DataSpec) -> Iterator[InferenceBatch]:
        """A block's images at the size a model takes; batch b of a split always holds its candidates from `b * BATCH` on."""


@dataclass(frozen=True)
class ShardDataset:
    """The splits of a shard set.

    Attributes:
        directory: The shard set.
    """

    directory: str

    def rows(self) -> Mapping[str, int]:
        """Number of rows per split."""
        return {name: split.rows for name, split in load_manifest(self.directory).splits.items()}

    def batches(self, block: Block, data: DataSpec) -> Iterator[InferenceBatch]:
        """A block's images; those that cannot be decoded are rejected.

        Raises:
            DataError: The shard set cannot be used, or a row is not what was written.
        """
        batches, reader = _opened(self.directory, block.split, data)
        step, end = block.start // BATCH, -(-block.stop // BATCH)
        while step < end:
            try:
                for batch in batches.epoch(0, step, stop_step=end):
                    rows = np.asarray(batch["row"])
                    rows = rows[rows >= 0]
                    yield InferenceBatch(batch["image"], reader.labels[rows], reader.ids(rows), [])
                    step += 1
            except (
                tf.errors.OpError
            ):  # look at each image of the batch, leave out what is bad, and go on behind it
                rows = np.arange(step * BATCH, min((step + 1) * BATCH, reader.rows))
                stored = reader.images(rows), reader.shapes(rows), reader.ids(rows)
                yield _decoded(*stored, reader.labels[rows], data, reader.manifest.encoding)
                step += 1


@lru_cache(maxsize=1)  # blocks of a split come one after the other
def _opened(directory: str, split: str, data: DataSpec) -> tuple[Batches, ShardReader]:
    return Batches(directory, split, data, BATCH), ShardReader(directory, split)


@dataclass(frozen=True)
class SourceDataset:
    """The images of a source, made ready as for a default shard set and so with the same answers.

    Attributes:
        source: Where they come from.
    """

    source: Source

    def rows(self) -> Mapping[str, int]:
        """Number of candidates per split."""
        return self.source.counts()

    def batches(self, block: Block, data: DataSpec) -> Iterator[InferenceBatch]:
        """A block's images; those that would not be taken into shards are rejected.

        Raises:
            DataError: The source cannot be read.
        """

        def batch(start: int) -> InferenceBatch:
            items = list(prepared(self.source, block.split, start, min(start + BATCH, block.stop), AS_SHARDS))
            records: list[Record] = [item[0] for item in items if not isinstance(item, Rejected)]
            shapes = np.array([record.shape for record in records], np.int32).reshape(-1, 3)
            labels = np.array([record.label for record in records], np.int32)
            fed = _decoded(
                [r.image for r in records], shapes, [r.id for r in records], labels, data, AS_SHARDS.encoding
            )
            return fed._replace(
                rejected=[item for item in items if isinstance(item, Rejected)] + fed.rejected
            )

        return _ahead(batch, range(block.start, block.stop, BATCH))


def _decoded(
    images: Sequence[Any],
    shapes: np.ndarray,
    ids: list[str],
    labels: np.ndarray,
    data: DataSpec,
    encoding: str,
) -> InferenceBatch:
    """A batch of those of at most `BATCH` stored images that can be decoded."""
    good = list(range(len(images)))
    try:
        pixels = tfdata.decode_all(images, shapes, data, encoding)
    except tf.errors.InvalidArgumentError:
        good = [place for place in good if _decodable(images[place], shapes[place], data, encoding)]
        pixels = tfdata.decode_all([images[place] for place in good], shapes[good], data, encoding)
    padded = np.zeros((BATCH, *pixels.shape[1:]), np.uint8)
    padded[: len(good)] = pixels
    rejected = [Rejected(name, UNDECODABLE) for place, name in enumerate(ids) if place not in good]
    return InferenceBatch(padded, labels[good], [ids[place] for place in good], rejected)


def _decodable(image: Any, shape: np.ndarray, data: DataSpec, encoding: str) -> bool:
    try:
        tfdata.decode_all([image], shape[None], data, encoding)
    except tf.errors.InvalidArgumentError:
        return False
    return True


def _ahead(function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """What a function makes of items, in their order, computed in threads ahead of being asked for."""
    threads = int(os.environ.get("TF_NUM_INTRAOP_THREADS") or tfdata.cores())  # a worker's share
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[U]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
