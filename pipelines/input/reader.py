"""Rows of a split to stored images, by random access into shards mapped into memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import DataError
from pipelines.records import Box, compute_checksum
from pipelines.shards.arrow import DAMAGE_FIX
from pipelines.shards.formats import ShardRows, open_shard
from pipelines.shards.manifest import load_manifest

MAPPED_SHARDS = 16_384  # kept open at a time; Linux allows a process 65,530 maps


class ShardReader:
    """One split of a shard set. Opening maps the files and reads the labels; images are read, and checked, on demand.

    Args:
        directory: The shard set.
        split: Which split.

    Attributes:
        manifest: The manifest of the shard set.
        rows: Number of examples.
        labels: int32 `[rows]`.
        shard_rows: Rows of every shard, in row order.

    Raises:
        DataError: The shard set or the split is not there, or a file of it is missing, cut short or not
            what the manifest says.
    """

    def __init__(self, directory: str | Path, split: str) -> None:
        self.manifest = load_manifest(directory)
        self.split = split
        self._directory, self._shards = Path(directory), self.manifest.get_split(split).shards
        self._open = lru_cache(MAPPED_SHARDS)(self._mapped)
        self.shard_rows = tuple(shard.rows for shard in self._shards)
        self._ends = np.cumsum(self.shard_rows, dtype=np.int64)  # row number after the last of each shard
        self.rows = sum(self.shard_rows)
        self.labels = np.empty(self.rows, np.int32)
        for index, end in enumerate(self._ends):
            self.labels[end - self.shard_rows[index] : end] = self._open(index).labels

    def images(self, rows: Sequence[int] | NDArray[np.int64]) -> list[memoryview]:
        """The stored images of some rows, in the order asked for: views of the files, each held against its checksum.

        Raises:
            DataError: There is no such row, or image or label are not what was written; names file, row and id.
        """
        found = []
        for row, shard, place in self._places(rows):
            image = shard.image(place)
            if compute_checksum(image, int(self.labels[row])) != shard.checksums[place]:
                raise self._damaged(row)
            found.append(image)
        return found

    def shapes(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int32]:
        """Height, width and channels of the stored images of some rows: int32 `[n, 3]`."""
        return np.array([shard.shapes[place] for _, shard, place in self._places(rows)], np.int32).reshape(
            -1, 3
        )

    def ids(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The identifiers of some rows: their paths in the source."""
        return [shard.id(place) for _, shard, place in self._places(rows)]

    def evidence(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Box | None]:
        """The boxes `(ymin, xmin, ymax, xmax)` in [0, 1] of some rows, None where unknown."""
        return [shard.bbox(place) for _, shard, place in self._places(rows)]

    def _places(self, rows: Sequence[int] | NDArray[np.int64]) -> list[tuple[int, ShardRows, int]]:
        """Row, shard and row within the shard of every row asked for."""
        wanted = np.asarray(rows, np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.rows:
            bad = wanted[(wanted < 0) | (wanted >= self.rows)][0]
            raise DataError(
                f"a row of {self.split!r} from 0 to {self.rows - 1}",
                f"row={bad}",
                "ask for a row that is there",
            )
        indices = np.searchsorted(self._ends, wanted, side="right")
        places = wanted - (self._ends - self.shard_rows)[indices]
        shards = map(self._open, indices.tolist())
        return list(zip(wanted.tolist(), shards, places.tolist(), strict=True))

    def _mapped(self, index: int) -> ShardRows:
        return open_shard(self._directory, self._shards[index])

    def _damaged(self, row: int) -> DataError:
        index = int(np.searchsorted(self._ends, row, side="right"))
        place = row - int(self._ends[index]) + self.shard_rows[index]
        (name,) = self.ids([row])
        received = f"{format_paths(self._directory, self._shards[index])}: row={place} of the file, row={row} of split {self.split!r}, id={name}"
        return DataError("image and label as they were written", received, DAMAGE_FIX)
