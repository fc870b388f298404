"""Reads the training images of several shard sets as one split: `data.mix`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.input.mixed_manifest import SPLIT, mix_manifests
from pipelines.input.order import PADDING
from pipelines.input.reader import RowNumbers, ShardNumbers, ShardReader, check_rows
from pipelines.input.windows import Rows
from pipelines.records import Box
from pipelines.remote.metrics import StoreMetrics
from pipelines.remote.uri import Location
from pipelines.shards.manifest import load_manifest
from pipelines.spec import DataSpec

T = TypeVar("T")


class MixedReader:
    """Random access to the training rows of several sets, numbered one set after the other.

    The members are those of `ShardReader`.

    Args:
        location: Shard set named by `--data`.
        data: Settings with a mix.

    Attributes:
        manifest: Manifest of the mix.
        split: Name of the split.
        rows: Number of examples of all sets.
        shard_rows: int64 `[shards]`, rows of every shard of all sets, in row order.
        set_shard_rows: The same for each set.
        readers: Reader of each set.

    Raises:
        DataError: A set does not exist or is damaged, or the sets cannot be mixed.
    """

    def __init__(self, location: str | Location, data: DataSpec) -> None:
        self.manifest = mix_manifests(str(location), load_manifest(location), data)
        self.split = SPLIT
        self.readers = [ShardReader(mixed.location, SPLIT, data.cache_gb) for mixed in self.manifest.mix]
        self.set_shard_rows: tuple[Rows, ...] = tuple(reader.shard_rows for reader in self.readers)
        self.shard_rows = np.concatenate(self.set_shard_rows)
        self._ends = np.array(list(accumulate(reader.rows for reader in self.readers)))
        self._shard_ends = np.array(list(accumulate(len(rows) for rows in self.set_shard_rows)))
        self.rows = int(self._ends[-1])

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """Class indices of all rows, int32 `[rows]`; read when they are first used."""
        return np.concatenate([reader.labels for reader in self.readers])

    def read_labels(self, rows: RowNumbers) -> NDArray[np.int32]:
        """Returns the class indices of some rows, int32 `[n]`."""
        return np.array(self._gather(rows, ShardReader.read_labels), np.int32)

    def read_images(self, rows: RowNumbers) -> list[bytes]:
        """Reads the stored images of some rows, in the given order.

        Raises:
            DataError: A row does not exist, a file is missing or truncated, or an image or label differs from
                what was written; names file, row and id.
        """
        return self._gather(rows, ShardReader.read_images)

    def read_shapes(self, rows: RowNumbers) -> NDArray[np.int32]:
        """Returns height, width and channels of the stored images of some rows, int32 `[n, 3]`."""
        return np.array(self._gather(rows, ShardReader.read_shapes), np.int32).reshape(-1, 3)

    def read_ids(self, rows: RowNumbers) -> list[str]:
        """Returns the identifiers of some rows: their paths in the source."""
        return self._gather(rows, ShardReader.read_ids)

    def read_bboxes(self, rows: RowNumbers) -> list[Box | None]:
        """Returns the boxes `(ymin, xmin, ymax, xmax)` in [0, 1] of some rows, None if unknown."""
        return self._gather(rows, ShardReader.read_bboxes)

    def plan(self, windows: Iterable[ShardNumbers]) -> MixedReader:
        """Returns a reader for one pass over the split, whose shards a cache can fetch ahead and keep.

        Args:
            windows: Shards in the order of their use, see `ShardReader.plan`; iterated once for each set.
        """
        reader = copy.copy(self)
        ends = self._shard_ends.tolist()
        reader.readers = [
            part.plan(_select_shards(windows, end - len(part.shard_rows), end))
            for part, end in zip(self.readers, ends, strict=True)
        ]
        return reader

    def advance(self, window: int) -> None:
        """Announces that all windows of the plan before number `window` have been read."""
        for reader in self.readers:
            reader.advance(window)

    def metrics(self) -> StoreMetrics | None:
        """Returns what was fetched from stores so far for all sets, None for local ones."""
        total = None
        for reader in self.readers:
            metrics = reader.metrics()
            if metrics is not None:
                total = metrics if total is None else total + metrics
        return total

    def close(self) -> None:
        """Ends the plan, and lets go of all files."""
        for reader in self.readers:
            reader.close()

    def _gather(self, rows: RowNumbers, read: Callable[[ShardReader, Rows], Iterable[T]]) -> list[T]:
        """Reads some rows from their sets, and puts the results into the order of the rows.

        Raises:
            DataError: A row does not exist.
        """
        numbers = check_rows(rows, self.rows, self.split)
        sets = np.searchsorted(self._ends, numbers, side="right")
        results: list[Any] = [None] * len(numbers)
        for index in np.unique(sets).tolist():
            reader = self.readers[index]
            places = np.flatnonzero(sets == index)
            values = read(reader, numbers[places] - (int(self._ends[index]) - reader.rows))
            for place, value in zip(places.tolist(), values, strict=True):
                results[place] = value
        return results


def _select_shards(windows: Iterable[ShardNumbers], first: int, last: int) -> Iterator[Rows]:
    """Yields those shards of every window that belong to one set, numbered from its first."""
    for window in windows:
        shards = np.asarray(window, np.int64)
        yield shards[(shards >= first) & (shards < last)] - first


AnyReader = ShardReader | MixedReader


def open_reader(location: str | Location, split: str, data: DataSpec) -> AnyReader:
    """Opens a split of a shard set, or the mix in place of its training split.

    Args:
        location: Path or URI of the shard set named by `--data`.
        split: Name of the split.
        data: Settings of the run.

    Raises:
        DataError: The shard set or the split does not exist or is damaged, or the sets cannot be mixed.
    """
    if data.mix and split == SPLIT:
        return MixedReader(location, data)
    return ShardReader(location, split, data.cache_gb)


def read_padded_shapes(reader: AnyReader, rows: Rows) -> NDArray[np.int32]:
    """Reads height, width and channels of the stored images of a batch.

    Args:
        reader: Reader of the split.
        rows: Row numbers, int64 `[n]`, `PADDING` for none.

    Returns:
        int32 `[n, 3]`; zeros for padding.
    """
    is_image = rows != PADDING
    shapes = np.zeros((len(rows), 3), np.int32)
    shapes[is_image] = reader.read_shapes(rows[is_image])
    return shapes


def list_set_rows(reader: AnyReader) -> tuple[Rows, ...]:
    """Returns the rows of every shard, for each set of a mix, or for the single set."""
    return reader.set_shard_rows if isinstance(reader, MixedReader) else (reader.shard_rows,)


def list_readers(reader: AnyReader) -> list[ShardReader]:
    """Returns the readers of all sets of a mix, or of the single set."""
    return reader.readers if isinstance(reader, MixedReader) else [reader]


def list_draws(reader: AnyReader) -> tuple[int, ...] | None:
    """Returns the images of every set of a mix in an epoch; None for a single set."""
    if not isinstance(reader, MixedReader):
        return None
    return tuple(mixed.epoch_images for mixed in reader.manifest.mix)
