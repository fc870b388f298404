"""The order of an epoch without lanes, computed at once: what the lazy order has to equal, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def epoch_order(
    rows: int, seed: int | None, epoch: int, shard_rows: Sequence[int] = (), window: int | None = None
) -> Rows:
    """Returns every row of an epoch in its order.

    Args:
        rows: Number of rows in the split.
        seed: Seed of the shuffling; None keeps the stored order.
        epoch: Number of the epoch, from 0.
        shard_rows: Rows of every shard; required with a window.
        window: Number of shards that are shuffled together; None for all.
    """
    if seed is None:
        return np.arange(rows, dtype=np.int64)
    words = _draw_words(seed, epoch, rows)
    if window is None:
        return np.argsort(words, kind="stable").astype(np.int64, copy=False)
    ends = np.cumsum(shard_rows, dtype=np.int64)
    starts = ends - shard_rows
    shards = np.argsort(_draw_words(seed, epoch, len(ends), stream=1), kind="stable")
    parts = [np.empty(0, np.int64)]
    for first in range(0, len(shards), window):
        group = np.sort(shards[first : first + window])
        rows_of_group = np.concatenate([np.arange(starts[shard], ends[shard]) for shard in group])
        parts.append(rows_of_group[np.argsort(words[rows_of_group], kind="stable")])
    return np.concatenate(parts)


def _draw_words(seed: int, epoch: int, count: int, stream: int = 0) -> NDArray[np.uint64]:
    """Draws the first words of a stream of a key; the stream is the highest word of the counter."""
    key = np.array([seed, epoch], np.uint64)
    counter = np.array([0, 0, 0, stream], np.uint64)
    return np.random.Philox(counter=counter, key=key).random_raw(count)
