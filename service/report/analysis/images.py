"""The images of one split, at the size a model takes, as the report reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from pipelines.records import Batch, Box
from pipelines.spec import DataSpec

BATCH = 64


class Images(Protocol):
    """One split of a shard set, at the size a model takes.

    Attributes:
        split: Its name.
        labels: int32 `[rows]`.
    """

    split: str
    labels: np.ndarray

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Some images, uint8 `[N, H, W, C]`."""

    def ids(self, rows: Sequence[int]) -> list[str]:
        """Where those images came from."""

    def evidence(self, rows: Sequence[int]) -> list[Box | None]:
        """Boxes `(ymin, xmin, ymax, xmax)` in [0, 1] that decide the classes of those images, None where unknown."""

    def batches(self) -> Iterable[Batch]:
        """All images, in the order of the rows."""


class ShardImages:
    """`Images` of a shard set.

    Args:
        shards: The shard set.
        split: Which split.
        data: Size and channels the images are brought to.

    Raises:
        DataError: The shard set cannot be read.
    """

    def __init__(self, shards: Path, split: str, data: DataSpec) -> None:
        from pipelines.input.reader import ShardReader

        self.shards, self.split, self.data = shards, split, data
        self._reader = ShardReader(shards, split)
        self.labels = np.asarray(self._reader.labels)

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Some images, uint8 `[N, H, W, C]`."""
        from pipelines.input.batches import read_rows

        return np.asarray(read_rows(self.shards, self.split, self.data, [int(row) for row in rows])["image"])[
            : len(rows)
        ]

    def ids(self, rows: Sequence[int]) -> list[str]:
        """Where those images came from."""
        return self._reader.ids([int(row) for row in rows])

    def evidence(self, rows: Sequence[int]) -> list[Box | None]:
        """Boxes `(ymin, xmin, ymax, xmax)` in [0, 1] that decide the classes of those images, None where unknown."""
        return self._reader.evidence([int(row) for row in rows])

    def batches(self) -> Iterator[Batch]:
        """All images, in the order of the rows."""
        from pipelines.input.batches import Batches

        batches = Batches(self.shards, self.split, self.data, BATCH)
        with batches.data_errors():
            yield from batches.epoch(0)
