"""Reads the images of one split for the report, at the size that the model takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from pipelines.records import Batch, Box
from pipelines.remote.uri import Location
from pipelines.spec import DataSpec
from service.inference.classes import ClassMatch

# Images that are decoded at a time.
BATCH = 64


class Images(Protocol):
    """One split of a shard set, decoded to the size that a model takes.

    Attributes:
        split: Name of the split.
        labels: True classes of all rows, int32 `[rows]`.
    """

    split: str
    labels: np.ndarray

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Reads the images of some rows, uint8 `[N, H, W, C]`."""

    def read_ids(self, rows: Sequence[int]) -> list[str]:
        """Reads the identifiers of some rows: the names of the images in their source."""

    def read_bboxes(self, rows: Sequence[int]) -> list[Box | None]:
        """Reads the bounding boxes `(ymin, xmin, ymax, xmax)` of some rows, in [0, 1]; None if unknown."""

    def iterate_batches(self) -> Iterable[Batch]:
        """Iterates over all images, in the order of the rows."""


class ShardImages:
    """The images of one split of a shard set, see `Images`.

    Args:
        shards: Directory of the shard set.
        split: Name of the split.
        data: Size and channels that the images are decoded to, and the mix that they come from.
        match: Maps labels of the shard set to outputs of the model; None if they are the same.

    Raises:
        DataError: The shard set cannot be read.
    """

    def __init__(self, shards: Location, split: str, data: DataSpec, match: ClassMatch | None = None) -> None:
        from pipelines.input.mix import open_reader

        self.shards = shards
        self.split = split
        self.data = data
        self._reader = open_reader(shards, split, data)
        self._match = match
        self.labels = np.asarray(self._reader.labels)
        if match is not None:
            self.labels = match.map_labels(self.labels)

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Reads the images of some rows, uint8 `[N, H, W, C]`."""
        from pipelines.input.batches import read_rows

        batch = read_rows(self.shards, self.split, self.data, [int(row) for row in rows])
        return np.asarray(batch["image"])[: len(rows)]

    def read_ids(self, rows: Sequence[int]) -> list[str]:
        """Reads the identifiers of some rows: the names of the images in their source."""
        return self._reader.read_ids([int(row) for row in rows])

    def read_bboxes(self, rows: Sequence[int]) -> list[Box | None]:
        """Reads the bounding boxes of some rows, in [0, 1] of the decoded image; None if unknown."""
        from pipelines.input.geometry import map_box

        indices = [int(row) for row in rows]
        boxes = self._reader.read_bboxes(indices)
        if self.data.fit == "stretch":
            return boxes
        shapes = self._reader.read_shapes(np.array(indices, np.int64))
        return [
            None if box is None else map_box(box, shape, self.data)
            for box, shape in zip(boxes, shapes, strict=True)
        ]

    def iterate_batches(self) -> Iterator[Batch]:
        """Iterates over all images, in the order of the rows."""
        from pipelines.input.batches import Batches

        batches = Batches(self.shards, self.split, self.data, BATCH)
        with batches.data_errors():
            for batch in batches.epoch(0):
                if self._match is None:
                    yield batch
                else:
                    yield {**batch, "label": self._match.map_labels(batch["label"])}
