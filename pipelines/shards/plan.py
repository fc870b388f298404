"""Plans which source images go into which file of a shard set, before any image is read."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.spec import ShardSpec, Spec


class PlannedShard(Spec):
    """One shard file to write. Candidates are source images, which may turn out to be unreadable.

    Attributes:
        file: Name of the shard file.
        split: Split of the shard set that the file belongs to.
        source_split: Split of the source to read from.
        start: Index of the first candidate.
        stop: Index after the last candidate.
    """

    file: str
    split: str
    source_split: str
    start: int
    stop: int

    @property
    def candidates(self) -> int:
        """Number of source images in the range."""
        return self.stop - self.start


def plan_shards(counts: Mapping[str, int], spec: ShardSpec) -> tuple[PlannedShard, ...]:
    """Plans a shard set. Every candidate is in exactly one shard, and no shard is empty.

    If there is no validation split, the last `spec.validation` of the train split becomes one. Unless this
    share is 0, at least one image is held out, but never all of them. A source that knows its labels has been
    divided class by class before (see `pipelines.sources.holdout`).

    Args:
        counts: Candidates per split of the source: `train`, optionally `validation` and `test`.
        spec: Options of the shard set.

    Returns:
        The shards in order: those of `train`, then those of `validation` and `test`.
    """
    train = counts.get("train", 0)
    validation = counts.get("validation", 0)
    test = _plan_split("test", "test", range(counts.get("test", 0)), spec)
    if validation or not spec.validation:
        return (
            *_plan_split("train", "train", range(train), spec),
            *_plan_split("validation", "validation", range(validation), spec),
            *test,
        )
    held_out = min(max(round(train * spec.validation), 1), max(train - 1, 0))
    return (
        *_plan_split("train", "train", range(train - held_out), spec),
        *_plan_split("validation", "train", range(train - held_out, train), spec),
        *test,
    )


def _plan_split(split: str, source_split: str, candidates: range, spec: ShardSpec) -> list[PlannedShard]:
    starts = range(0, len(candidates), spec.shard_rows)
    parts = [candidates[start : start + spec.shard_rows] for start in starts]
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
