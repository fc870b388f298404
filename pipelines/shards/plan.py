"""Which source images go into which file of a shard set: decided before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from pipelines.spec import ShardSpec, Spec


class PlannedShard(Spec):
    """One file to write.

    Attributes:
        file: Its name.
        split: The split it belongs to.
        source_split: The split of the source it is read from.
        start: First candidate.
        stop: One past the last candidate.
    """

    file: str
    split: str
    source_split: str
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of candidates."""
        return self.stop - self.start


def plan_shards(counts: Mapping[str, int], spec: ShardSpec) -> tuple[PlannedShard, ...]:
    """Plans a shard set. Every candidate is in exactly one shard, and no shard is empty.

    Where the source has no validation split, the last `spec.validation` of its train split becomes one: at least
    one image, unless the share is 0, and never all of them.

    Args:
        counts: Candidates per split of the source: `train` and perhaps `validation`.
        spec: How shards are made.

    Returns:
        The files in order: those of train, then those of validation.
    """
    train, validation = counts.get("train", 0), counts.get("validation", 0)
    if validation or not spec.validation:
        parts = [("train", "train", 0, train), ("validation", "validation", 0, validation)]
    else:
        held_out = min(max(round(train * spec.validation), 1), max(train - 1, 0))
        parts = [("train", "train", 0, train - held_out), ("validation", "train", train - held_out, train)]
    return tuple(
        chain.from_iterable(
            _cut(split, source, range(start, stop), spec) for split, source, start, stop in parts
        )
    )


def _cut(split: str, source_split: str, candidates: range, spec: ShardSpec) -> list[PlannedShard]:
    parts = [candidates[at : at + spec.shard_rows] for at in range(0, len(candidates), spec.shard_rows)]
    return [
        PlannedShard(
            file=f"{split}-{index:05d}-of-{len(parts):05d}.{spec.format}",
            split=split,
            source_split=source_split,
            start=part.start,
            stop=part.stop,
        )
        for index, part in enumerate(parts)
    ]
