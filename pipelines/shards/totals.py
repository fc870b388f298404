"""What the shards of a set hold, added up as they come: sums of whole numbers, so that the order makes no difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.shards.manifest import ShardFile, SplitManifest
from pipelines.shards.plan import PlannedShard
from pipelines.shards.task import ShardResult

Channels = tuple[float, float, float]


class ShardSetTotals:
    """Sums over a shard set.

    Args:
        plan: All shards of the set.
        classes: Number of classes.

    Attributes:
        done: Candidates of the shards that are finished.
        rejected: Candidates that were not taken.
        missing: Shards that are not finished, in the order of the plan.
    """

    def __init__(self, plan: Sequence[PlannedShard], classes: int) -> None:
        self.plan = plan
        self.total = sum(planned.rows for planned in plan)
        self.done = self.rejected = 0
        self._shards: dict[str, ShardFile] = {}
        self._counts = {planned.split: np.zeros(classes, np.int64) for planned in plan}
        self._moments = {
            planned.split: np.zeros((3, 3), object) for planned in plan
        }  # Python's numbers know no largest

    @property
    def missing(self) -> list[PlannedShard]:
        """Shards that are not finished, in the order of the plan."""
        return [planned for planned in self.plan if planned.file not in self._shards]

    def add(self, planned: PlannedShard, result: ShardResult) -> None:
        """Adds a finished shard."""
        self._shards[planned.file] = result.shard
        self.done += planned.rows
        self.rejected += result.rejected
        self._counts[planned.split] += result.class_counts
        self._moments[planned.split] += np.array(result.moments, object)

    def splits(self) -> dict[str, SplitManifest]:
        """Every split with at least one row; its shards are those with rows, in the order of the plan."""
        return {split: self._split(split) for split, counts in self._counts.items() if counts.any()}

    def _split(self, split: str) -> SplitManifest:
        shards = [self._shards[planned.file] for planned in self.plan if planned.split == split]
        mean, std = _mean_and_std(self._moments[split]) if self._moments[split].any() else (None, None)
        return SplitManifest(
            shards=tuple(shard for shard in shards if shard.rows),
            class_counts=tuple(self._counts[split].tolist()),
            mean=mean,
            std=std,
        )


def _mean_and_std(moments: NDArray[np.object_]) -> tuple[Channels, Channels]:
    """Of R, G and B, from the number of whole values, their sum and the sum of their squares `[3, 3]`; exact up to the last rounding."""
    means = [total / pixels for pixels, total, _ in moments]
    deviations = [math.sqrt(pixels * squares - total * total) / pixels for pixels, total, squares in moments]
    return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])
