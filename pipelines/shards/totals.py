"""Adds up the results of all shards of a set, in integers, so that their order does not matter."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.shards.manifest import ShardFile, SplitManifest
from pipelines.shards.plan import PlannedShard
from pipelines.shards.task import ShardResult

Channels = tuple[float, float, float]


class ShardSetTotals:
    """Adds up the results of the shards of a set.

    Args:
        plan: All shards of the set.
        classes: Number of classes in the source.

    Attributes:
        candidates: Number of source images in the plan.
        candidates_done: Number of source images in the shards added so far.
        rejected: Number of source images that were rejected so far.
        notices: Number of images per kind of notice so far.
    """

    def __init__(self, plan: Sequence[PlannedShard], classes: int) -> None:
        self.plan = plan
        self.candidates = sum(planned_shard.candidates for planned_shard in plan)
        self.candidates_done = 0
        self.rejected = 0
        self.notices: Counter[str] = Counter()
        self._shards: dict[str, ShardFile] = {}
        self._class_counts = {planned_shard.split: np.zeros(classes, np.int64) for planned_shard in plan}
        # Python integers, because sums of squares over a large set exceed 64 bits
        self._pixel_sums = {planned_shard.split: np.zeros((3, 3), object) for planned_shard in plan}

    @property
    def missing(self) -> list[PlannedShard]:
        """Shards that have not been added, in the order of the plan."""
        return [planned_shard for planned_shard in self.plan if planned_shard.file not in self._shards]

    def add(self, planned_shard: PlannedShard, result: ShardResult) -> None:
        """Adds the result of one shard."""
        self._shards[planned_shard.file] = result.shard
        self.candidates_done += planned_shard.candidates
        self.rejected += result.rejected
        self.notices.update(result.notices)
        self._class_counts[planned_shard.split] += result.class_counts
        self._pixel_sums[planned_shard.split] += np.array(result.pixel_sums, object)

    def build_splits(self) -> dict[str, SplitManifest]:
        """Builds the manifest of every split with at least one row; shards without rows are left out."""
        return {name: self._build_split(name) for name, counts in self._class_counts.items() if counts.any()}

    def _build_split(self, name: str) -> SplitManifest:
        shards = [
            self._shards[planned_shard.file] for planned_shard in self.plan if planned_shard.split == name
        ]
        mean = None
        std = None
        pixel_sums = self._pixel_sums[name]
        if pixel_sums.any():
            mean, std = _compute_mean_and_std(pixel_sums)
        return SplitManifest(
            shards=tuple(shard for shard in shards if shard.rows),
            class_counts=tuple(self._class_counts[name].tolist()),
            mean=mean,
            std=std,
        )


def _compute_mean_and_std(pixel_sums: NDArray[np.object_]) -> tuple[Channels, Channels]:
    """Computes mean and standard deviation of R, G and B, exact up to the last rounding.

    Args:
        pixel_sums: Integers `[3, 3]`: per channel the number of pixels, their sum and the sum of their
            squares.
    """
    means = [total / pixels for pixels, total, _ in pixel_sums]
    stds = [math.sqrt(pixels * squares - total * total) / pixels for pixels, total, squares in pixel_sums]
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])
