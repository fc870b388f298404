"""Plans which source images go into which file of a shard set, before any image is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from pipelines.spec import ShardSpec

TARGET_BYTES = 96 * 10**6  # of a shard whose size is chosen here
MIN_SHARDS = (
    16  # of a train split that is large enough, so that small sets build in parallel and shuffle well
)
MIN_ROWS = 32  # images of a shard, unless fewer reach `TARGET_BYTES`


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """One shard file to write. Candidates are source images, which may turn out to be unreadable.

    Attributes:
        index: Position of the shard in the plan.
        file: Name of the shard file.
        split: Split of the shard set that the file belongs to.
        source_split: Split of the source to read from.
        start: Index of the first candidate.
        stop: Index after the last candidate.
    """

    index: int
    file: str
    split: str
    source_split: str
    start: int
    stop: int

    @property
    def candidates(self) -> int:
        """Number of source images in the range."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class PlannedSplit:
    """One split of a shard set: a range of candidates that is cut into shards of equal size.

    Attributes:
        split: Name of the split.
        source_split: Split of the source to read from.
        start: Index of the first candidate.
        stop: Index after the last candidate.
        shard_rows: Candidates of every shard but the last, which may have fewer.
    """

    split: str
    source_split: str
    start: int
    stop: int
    shard_rows: int

    @property
    def candidates(self) -> int:
        """Number of source images in the split."""
        return self.stop - self.start

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.candidates // self.shard_rows)


class ShardPlan(Sequence[PlannedShard]):
    """All shards of a set in order. A shard is computed on access, so that a plan of any length is small.

    Args:
        splits: Splits in order; those without candidates are left out.
        suffix: Suffix of the shard files: `arrow` or `tfrecord`.
    """

    def __init__(self, splits: Sequence[PlannedSplit], suffix: str) -> None:
        self.splits = tuple(split for split in splits if split.candidates)
        self.suffix = suffix

    @property
    def candidates(self) -> int:
        """Number of source images in the plan."""
        return sum(split.candidates for split in self.splits)

    def __len__(self) -> int:
        return sum(split.shards for split in self.splits)

    def __iter__(self) -> Iterator[PlannedShard]:
        first = 0
        for split in self.splits:
            for number in range(split.shards):
                yield self._build_shard(split, number, first + number)
            first += split.shards

    @overload
    def __getitem__(self, index: int) -> PlannedShard: ...
    @overload
    def __getitem__(self, index: slice) -> list[PlannedShard]: ...
    def __getitem__(self, index: int | slice) -> PlannedShard | list[PlannedShard]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        first = 0
        for split in self.splits:
            if first <= position < first + split.shards:
                return self._build_shard(split, position - first, position)
            first += split.shards
        raise IndexError(f"shard {index} of {len(self)}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ShardPlan):
            return NotImplemented
        return (self.splits, self.suffix) == (other.splits, other.suffix)

    def __hash__(self) -> int:
        return hash((self.splits, self.suffix))

    def describe(self) -> str:
        """Returns a text that is the same for equal plans only."""
        return repr((self.splits, self.suffix))

    def owns_file(self, name: str) -> bool:
        """Tells whether a file is a shard of the plan, or lies next to one under the same name."""
        stem = name.split(".", 1)[0]
        split_name, _, rest = stem.partition("-")
        number = rest.partition("-")[0]
        if not number.isdecimal():
            return False
        for split in self.splits:
            if split.split == split_name and int(number) < split.shards:
                return stem == _name_shard(split, int(number))
        return False

    def _build_shard(self, split: PlannedSplit, number: int, index: int) -> PlannedShard:
        start = split.start + number * split.shard_rows
        return PlannedShard(
            index=index,
            file=f"{_name_shard(split, number)}.{self.suffix}",
            split=split.split,
            source_split=split.source_split,
            start=start,
            stop=min(start + split.shard_rows, split.stop),
        )


class MissingShards(Sequence[PlannedShard]):
    """Shards of a plan that are not complete yet, as positions in the plan.

    Args:
        plan: All shards of the set.
        is_complete: A byte per shard of the plan: 0 for the missing ones.
    """

    def __init__(self, plan: ShardPlan, is_complete: bytes | bytearray) -> None:
        self._plan = plan
        self._indices = np.flatnonzero(np.frombuffer(is_complete, np.uint8) == 0)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> PlannedShard: ...
    @overload
    def __getitem__(self, index: slice) -> list[PlannedShard]: ...
    def __getitem__(self, index: int | slice) -> PlannedShard | list[PlannedShard]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return self._plan[int(self._indices[index])]


def choose_shard_rows(images: int, image_bytes: float) -> int:
    """Chooses the number of images per shard, as a function of the source alone.

    Shards have `TARGET_BYTES`, which is few requests to an object store and little overhead per shard. A
    smaller set is divided into `MIN_SHARDS`, but not into shards of fewer than `MIN_ROWS` images.

    Args:
        images: Number of training images.
        image_bytes: Mean size of a stored image in bytes.
    """
    largest = max(int(TARGET_BYTES / max(image_bytes, 1.0)), 1)
    return min(largest, max(math.ceil(images / MIN_SHARDS), MIN_ROWS))


def plan_shards(counts: Mapping[str, int], spec: ShardSpec) -> ShardPlan:
    """Plans a shard set. Every candidate is in exactly one shard, and no shard is empty.

    If there is no validation split, the last `spec.validation` of the train split becomes one. Unless this
    share is 0, at least one image is held out, but never all of them. A source that knows its labels has been
    divided class by class before (see `pipelines.sources.holdout`).

    Args:
        counts: Candidates per split of the source: `train`, optionally `validation` and `test`.
        spec: Options of the shard set. Without `shard_rows`, images count as small.

    Returns:
        The shards in order: those of `train`, then those of `validation` and `test`.
    """
    train = counts.get("train", 0)
    validation = counts.get("validation", 0)
    rows = spec.shard_rows or choose_shard_rows(train, 0.0)
    test_split = PlannedSplit("test", "test", 0, counts.get("test", 0), rows)
    if validation or not spec.validation:
        train_split = PlannedSplit("train", "train", 0, train, rows)
        validation_split = PlannedSplit("validation", "validation", 0, validation, rows)
    else:
        held_out = min(max(round(train * spec.validation), 1), max(train - 1, 0))
        train_split = PlannedSplit("train", "train", 0, train - held_out, rows)
        validation_split = PlannedSplit("validation", "train", train - held_out, train, rows)
    return ShardPlan((train_split, validation_split, test_split), spec.format)


def _name_shard(split: PlannedSplit, number: int) -> str:
    return f"{split.split}-{number:05d}-of-{split.shards:05d}"
