"""Reads rows of a split at random from memory-mapped shards, and checks every image against its checksum."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import DataError
from pipelines.records import Box, compute_checksum
from pipelines.shards.arrow import DAMAGE_FIX
from pipelines.shards.formats import ShardRows, format_paths, open_shard
from pipelines.shards.manifest import load_manifest

MAPPED_SHARDS = 16_384  # number of shards mapped at a time; Linux allows 65,530 maps per process

RowNumbers = Sequence[int] | NDArray[np.int64]


class ShardReader:
    """Random access to the rows of one split.

    Opening a reader maps the files and reads the labels; images are read and checked on demand.

    Args:
        directory: Shard set to read from.
        split: Name of a split in its manifest.

    Attributes:
        manifest: The manifest of the shard set.
        split: Name of the split.
        rows: Number of examples.
        labels: Class indices of all rows, int32 `[rows]`.
        shard_rows: Rows of every shard, in row order.

    Raises:
        DataError: The shard set or the split does not exist, or one of its files is missing, truncated or
            differs from the manifest.
    """

    def __init__(self, directory: str | Path, split: str) -> None:
        self.manifest = load_manifest(directory)
        self.split = split
        self._directory = Path(directory)
        self._shards = self.manifest.get_split(split).shards
        self._open_shard = lru_cache(MAPPED_SHARDS)(self._map_shard)
        self.shard_rows = tuple(shard.rows for shard in self._shards)
        self._ends = np.cumsum(self.shard_rows, dtype=np.int64)  # row number after the last of each shard
        self.rows = sum(self.shard_rows)
        self.labels = np.empty(self.rows, np.int32)
        for index, end in enumerate(self._ends):
            self.labels[end - self.shard_rows[index] : end] = self._open_shard(index).labels

    def read_images(self, rows: RowNumbers) -> list[memoryview]:
        """Returns the stored images of some rows in the given order, as views of the mapped files.

        Raises:
            DataError: A row does not exist, or its image or label differs from what was written; names file,
                row and id.
        """
        images = []
        for row, shard, position in self._locate(rows):
            image = shard.image(position)
            if compute_checksum(image, int(self.labels[row])) != shard.checksums[position]:
                raise self._describe_damage(row)
            images.append(image)
        return images

    def read_shapes(self, rows: RowNumbers) -> NDArray[np.int32]:
        """Returns height, width and channels of the stored images of some rows, int32 `[n, 3]`."""
        shapes = [shard.shapes[position] for _, shard, position in self._locate(rows)]
        return np.array(shapes, np.int32).reshape(-1, 3)

    def read_ids(self, rows: RowNumbers) -> list[str]:
        """Returns the identifiers of some rows: their paths in the source."""
        return [shard.id(position) for _, shard, position in self._locate(rows)]

    def read_bboxes(self, rows: RowNumbers) -> list[Box | None]:
        """Returns the boxes `(ymin, xmin, ymax, xmax)` in [0, 1] of some rows, None if unknown."""
        return [shard.bbox(position) for _, shard, position in self._locate(rows)]

    def _locate(self, rows: RowNumbers) -> list[tuple[int, ShardRows, int]]:
        """Finds the shard of every row, and its position in that shard.

        Raises:
            DataError: A row does not exist.
        """
        numbers = np.asarray(rows, np.int64)
        is_outside = (numbers < 0) | (numbers >= self.rows)
        if is_outside.any():
            raise DataError(
                f"a row of {self.split!r} from 0 to {self.rows - 1}",
                f"row={numbers[is_outside][0]}",
                "choose a row in this range",
            )
        indices = np.searchsorted(self._ends, numbers, side="right")
        positions = numbers - (self._ends - self.shard_rows)[indices]
        shards = map(self._open_shard, indices.tolist())
        return list(zip(numbers.tolist(), shards, positions.tolist(), strict=True))

    def _map_shard(self, index: int) -> ShardRows:
        return open_shard(self._directory, self._shards[index])

    def _describe_damage(self, row: int) -> DataError:
        """Returns the error that names file, row and id of a damaged image."""
        index = int(np.searchsorted(self._ends, row, side="right"))
        position = row - int(self._ends[index]) + self.shard_rows[index]
        (name,) = self.read_ids([row])
        files = format_paths(self._directory, self._shards[index])
        received = f"{files}: row={position} of the file, row={row} of split {self.split!r}, id={name}"
        return DataError("image and label as they were written", received, DAMAGE_FIX)
