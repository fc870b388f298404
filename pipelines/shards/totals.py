"""Adds up the results of all shards of a set, in integers, so that their order does not matter."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.shards.manifest import InlineSplit, ShardFile, SplitManifest
from pipelines.shards.markers import ShardResult
from pipelines.shards.plan import PlannedShard, ShardPlan
from pipelines.shards.split_index import write_split

Channels = tuple[float, float, float]
BuiltShard = tuple[PlannedShard, ShardFile, bytes]  # with its part of the index of rows


class ShardSetTotals:
    """Adds up the results of the shards of a set; its size does not depend on their number.

    Args:
        plan: All shards of the set.
        classes: Number of classes in the source.

    Attributes:
        candidates: Number of source images in the plan.
        candidates_done: Number of source images in the shards added so far.
        rejected: Number of source images that were rejected so far.
        notices: Number of images per kind of notice so far.
    """

    def __init__(self, plan: ShardPlan, classes: int) -> None:
        self.candidates = plan.candidates
        self.candidates_done = 0
        self.rejected = 0
        self.notices: Counter[str] = Counter()
        self._file_format = plan.suffix
        names = [split.split for split in plan.splits]
        self._class_counts = {name: np.zeros(classes, np.int64) for name in names}
        # Python integers, because sums of squares over a large set exceed 64 bits
        self._pixel_sums = {name: np.zeros((3, 3), object) for name in names}

    def add(self, planned_shard: PlannedShard, result: ShardResult) -> None:
        """Adds the result of one shard."""
        self.candidates_done += planned_shard.candidates
        self.rejected += result.rejected
        self.notices.update(result.notices)
        self._class_counts[planned_shard.split] += result.class_counts
        self._pixel_sums[planned_shard.split] += np.array(result.pixel_sums, object)

    def get_class_counts(self, split: str) -> tuple[int, ...]:
        """Returns the rows per class of a split; all 0 if the plan does not have the split."""
        counts = self._class_counts.get(split)
        if counts is None:
            classes = len(next(iter(self._class_counts.values())))
            return (0,) * classes
        return tuple(counts.tolist())

    def build_splits(
        self, directory: Path, shards: Iterable[BuiltShard]
    ) -> dict[str, SplitManifest | InlineSplit]:
        """Writes the sidecars of every split with at least one row, and builds its entry in the manifest.

        Args:
            directory: Directory to write to.
            shards: All shards in the order of the plan. One at a time is held in memory.

        Raises:
            OSError: A file cannot be written.
        """
        splits: dict[str, SplitManifest | InlineSplit] = {}
        for name, group in groupby(shards, lambda built: built[0].split):
            if self._class_counts[name].any():
                splits[name] = self._build_split(directory, name, group)
            else:
                deque(group, maxlen=0)  # the caller counts on every shard being read
        return splits

    def _build_split(self, directory: Path, name: str, shards: Iterator[BuiltShard]) -> SplitManifest:
        mean = None
        std = None
        pixel_sums = self._pixel_sums[name]
        if pixel_sums.any():
            mean, std = _compute_mean_and_std(pixel_sums)
        parts = ((shard, part) for _, shard, part in shards)
        sidecars = write_split(directory, name, self._file_format, parts)
        return SplitManifest(**dict(sidecars), class_counts=self.get_class_counts(name), mean=mean, std=std)


def _compute_mean_and_std(pixel_sums: NDArray[np.object_]) -> tuple[Channels, Channels]:
    """Computes mean and standard deviation of R, G and B, exact up to the last rounding.

    Args:
        pixel_sums: Integers `[3, 3]`: per channel the number of pixels, their sum and the sum of their
            squares.
    """
    means = [total / pixels for pixels, total, _ in pixel_sums]
    stds = [math.sqrt(pixels * squares - total * total) / pixels for pixels, total, squares in pixel_sums]
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])
