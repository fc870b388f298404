"""Reads rows of a split at random, wherever its shards are, and checks every image against its checksum."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.cpus import count_process_cpus
from pipelines.errors import DataError
from pipelines.input.memory import keep_freed_memory
from pipelines.open_file import DAMAGE_FIX, DamagedFileError, OpenFile
from pipelines.records import BBOX_COLUMN, Box, compute_checksum
from pipelines.remote.metrics import StoreMetrics
from pipelines.remote.needs import WHOLE_BYTES, Need
from pipelines.remote.uri import Location, parse_location
from pipelines.shards.arrow import RowColumns
from pipelines.shards.files import ShardFiles, open_files
from pipelines.shards.formats import describe_shard, read_table
from pipelines.shards.manifest import SplitManifest, load_manifest
from pipelines.shards.split_index import open_table

CACHED_ROWS = 2**21  # rows whose columns are kept in memory: 36 bytes each
MIN_CACHED_SHARDS = 16
MAX_CACHED_SHARDS = 8192  # each takes 2 kilobytes besides its columns
CACHED_TABLES = 64  # shards whose identifiers and bounding boxes are kept in memory
READ_ROWS = 128  # images that are read at a time, so that no more than as many shards are open
READ_THREADS = 4  # at most; copying from the page cache takes longer than the checksum
PARALLEL_BYTES = 2**20  # of images that are read at a time; threads do not pay for less

RowNumbers = Sequence[int] | NDArray[np.int64]
ShardNumbers = Sequence[int] | NDArray[np.int64]


class _StoredImage(NamedTuple):
    """Where an image is, and what it must be.

    Attributes:
        file: File that holds the image.
        shard: Position of the shard in the split.
        position: Position of the image in the shard.
        start: Offset of the image in the file.
        size: Number of bytes.
        label: Class index that the checksum covers.
        checksum: Checksum of image and label.
    """

    file: OpenFile
    shard: int
    position: int
    start: int
    size: int
    label: int
    checksum: int


class _DamagedImageError(Exception):
    """An image is not what was written.

    Args:
        image: Place of the damaged image.
        reason: Error that says why, if the checksum does not.
    """

    def __init__(self, image: _StoredImage, reason: DataError | None = None) -> None:
        super().__init__(str(reason))
        self.shard = image.shard
        self.position = image.position
        self.reason = reason


class ShardReader:
    """Random access to the rows of one split.

    Opening a reader reads the manifest and the table of shards, but touches no shard. Images are read on
    demand, by position, and checked. The number of open files and the memory are bounded.

    Args:
        location: Directory of the shard set, or its address in an object store.
        split: Name of a split in its manifest.
        cache_gb: Largest size of the local cache in units of 10**9 bytes, for a set on a store; None for the
            default.

    Attributes:
        manifest: The manifest of the shard set.
        split: Name of the split.
        location: Where the shard set is.
        rows: Number of examples.
        shard_rows: int64 `[shards]`, rows of every shard, in row order.
        shard_bytes: int64 `[shards]`, size of the file of every shard that holds the images.

    Raises:
        DataError: The shard set or the split does not exist, or its table of shards is missing or damaged.
    """

    def __init__(self, location: str | Location, split: str, cache_gb: float | None = None) -> None:
        self.manifest = load_manifest(location)
        self.split = split
        self.location = parse_location(location)
        files: ShardFiles = open_files(location, cache_gb)
        table = open_table(files, self.manifest, split)
        self._files = files
        self._table = table
        self.shard_rows = self._table.rows
        self.shard_bytes = self._table.bytes
        self._ends = np.cumsum(self.shard_rows)  # row number after the last of each shard
        self.rows = int(self.shard_rows.sum())
        self._threads = min(READ_THREADS, count_process_cpus())
        mean_rows = self.rows // max(len(self.shard_rows), 1)
        cached_shards = min(max(CACHED_ROWS // max(mean_rows, 1), MIN_CACHED_SHARDS), MAX_CACHED_SHARDS)
        # None of these refers to the reader: without cycles, its files are closed with its last reference.
        self._read_columns = lru_cache(cached_shards)(table.read_columns)
        self._get_shard = lru_cache(cached_shards)(table.get_shard)
        self._read_table = lru_cache(CACHED_TABLES)(lambda shard: read_table(files, table.get_shard(shard)))

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """Class indices of all rows, int32 `[rows]`; read when they are first used.

        Raises:
            DataError: The index of rows is missing or damaged.
        """
        parts = [self._table.read_columns(number).labels for number in range(len(self.shard_rows))]
        return np.concatenate([np.empty(0, np.int32), *parts])

    def read_labels(self, rows: RowNumbers) -> NDArray[np.int32]:
        """Returns the class indices of some rows, int32 `[n]`."""
        labels = [columns.labels[position] for _, columns, position in self._locate(rows)]
        return np.array(labels, np.int32)

    def read_images(self, rows: RowNumbers) -> list[bytes]:
        """Reads the stored images of some rows, in the given order.

        Raises:
            DataError: A row does not exist, a file is missing or truncated, or an image or label differs from
                what was written; names file, row and id.
        """
        images: list[bytes] = []
        for start in range(0, len(rows), READ_ROWS):
            images += self._read_group(list(self._find(rows[start : start + READ_ROWS])))
        return images

    def _read_group(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Reads some images by shard and position; a damaged shard is fetched again, once."""
        fetched_again: set[int] = set()
        while True:
            try:
                return self._read_places(places)
            except _DamagedImageError as damage:
                shard = damage.shard
                if shard in fetched_again or not self._files.refetch(self._get_shard(shard)):
                    raise (damage.reason or self._describe_damage(shard, damage.position)) from None
                fetched_again.add(shard)

    def _read_places(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Reads some images, with all of their shards open at the same time.

        Raises:
            _DamagedImageError: An image or its label differs from what was written, or the file is truncated.
        """
        shards = list(dict.fromkeys(shard for shard, _ in places))
        with self._files.open([self._get_shard(shard) for shard in shards]) as opened:
            files = dict(zip(shards, opened, strict=True))
            images = []
            for shard, position in places:
                columns = self._read_columns(shard)
                image = _StoredImage(
                    file=files[shard],
                    shard=shard,
                    position=position,
                    start=columns.starts.item(position),
                    size=columns.sizes.item(position),
                    label=columns.labels.item(position),
                    checksum=columns.checksums.item(position),
                )
                image.file.read_ahead(image.start, image.size)
                images.append(image)

            total = sum(image.size for image in images)
            if total < PARALLEL_BYTES or self._threads == 1:
                return _read_all(images)
            part = -(-len(images) // self._threads)
            parts = [images[start : start + part] for start in range(0, len(images), part)]
            return list(chain.from_iterable(self._pool.map(_read_all, parts)))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        keep_freed_memory()  # otherwise, every thread would get new pages for every image
        return ThreadPoolExecutor(self._threads, "read-images")

    def read_shapes(self, rows: RowNumbers) -> NDArray[np.int32]:
        """Returns height, width and channels of the stored images of some rows, int32 `[n, 3]`."""
        shapes = [columns.shapes[position] for _, columns, position in self._locate(rows)]
        return np.array(shapes, np.int32).reshape(-1, 3)

    def read_ids(self, rows: RowNumbers) -> list[str]:
        """Returns the identifiers of some rows: their paths in the source."""
        return [str(self._read_table(shard)["id"][position].as_py()) for shard, position in self._find(rows)]

    def read_bboxes(self, rows: RowNumbers) -> list[Box | None]:
        """Returns the boxes `(ymin, xmin, ymax, xmax)` in [0, 1] of some rows, None if unknown."""
        boxes: list[Box | None] = []
        for shard, position in self._find(rows):
            box = self._read_table(shard)[BBOX_COLUMN][position].as_py()
            boxes.append(None if box is None else (box[0], box[1], box[2], box[3]))
        return boxes

    def plan(self, windows: Iterable[ShardNumbers]) -> ShardReader:
        """Returns a reader for one pass over the split, whose shards a cache can fetch ahead and keep.

        Args:
            windows: Shards in the order of their use, as positions in `shard_rows`, in groups that are read
                at the same time; may be endless.
        """
        files = ([self._table.get_shard(int(number)) for number in window] for window in windows)
        reader = copy.copy(self)
        reader._files = self._files.plan(files)
        return reader

    def advance(self, window: int) -> None:
        """Announces that all windows of the plan before number `window` have been read."""
        self._files.advance(window)

    def measure_need(self, shards: int) -> Need:
        """Measures what the cache of a set on a store must hold for reading some shards at a time.

        Args:
            shards: Largest number of shards that are in use at the same time.
        """
        splits = self.manifest.splits.values()
        sidecars = 0
        for split in splits:
            if isinstance(split, SplitManifest):
                sidecars += split.table.bytes
                # A larger index is not in the cache: its parts are read from the store.
                sidecars += split.index.bytes if split.index.bytes <= WHOLE_BYTES else 0
        return Need(
            shards=int(np.sort(self.shard_bytes)[::-1][:shards].sum()),
            sidecars=sidecars,
            total=sum(split.bytes for split in splits),
        )

    def metrics(self) -> StoreMetrics | None:
        """Returns what was fetched from a store so far, None for a local set."""
        return self._files.metrics()

    def close(self) -> None:
        """Ends the plan, and lets go of all files."""
        self._files.close()

    def _find(self, rows: RowNumbers) -> Iterator[tuple[int, int]]:
        """Finds the shard of every row, and its position in that shard.

        Raises:
            DataError: A row does not exist.
        """
        numbers = check_rows(rows, self.rows, self.split)
        shards = np.searchsorted(self._ends, numbers, side="right")
        positions = numbers - (self._ends[shards] - self.shard_rows[shards])
        return zip(shards.tolist(), positions.tolist(), strict=True)

    def _locate(self, rows: RowNumbers) -> Iterator[tuple[int, RowColumns, int]]:
        """Finds the shard of every row, the columns of that shard, and the position in them."""
        for shard, position in self._find(rows):
            yield shard, self._read_columns(shard), position

    def _describe_damage(self, shard: int, position: int) -> DataError:
        """Returns the error that names file, row and id of a damaged image."""
        row = int(self._ends[shard] - self.shard_rows[shard]) + position
        (name,) = self.read_ids([row])
        files = describe_shard(self._files, self._get_shard(shard))
        received = f"{files}: row={position} of the file, row={row} of split {self.split!r}, id={name}"
        return DataError("image and label as they were written", received, DAMAGE_FIX)


def _read_all(images: Sequence[_StoredImage]) -> list[bytes]:
    """Reads some images and compares them with their checksums.

    Raises:
        _DamagedImageError: An image or its label differs from what was written, or the file is truncated.
    """
    contents = []
    for image in images:
        try:
            content = image.file.read(image.start, image.size)
        except DamagedFileError as error:
            raise _DamagedImageError(image, error) from None
        if compute_checksum(content, image.label) != image.checksum:
            raise _DamagedImageError(image)
        contents.append(content)
    return contents


def check_rows(rows: RowNumbers, count: int, split: str) -> NDArray[np.int64]:
    """Checks that rows exist.

    Args:
        rows: Row numbers of a split.
        count: Number of rows in the split.
        split: Name of the split for the message.

    Returns:
        The row numbers, int64 `[n]`.

    Raises:
        DataError: A row does not exist; names the first such row.
    """
    numbers = np.asarray(rows, np.int64)
    is_outside = (numbers < 0) | (numbers >= count)
    if is_outside.any():
        raise DataError(
            f"a row of {split!r} from 0 to {count - 1}",
            f"row={numbers[is_outside][0]}",
            "choose a row in this range",
        )
    return numbers
