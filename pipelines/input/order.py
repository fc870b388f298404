"""Decides which rows make up which batch, as a pure function of seed, epoch and step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ConfigError

Rows = NDArray[np.int64]

PADDING = -1  # row number that fills up the last batch of an epoch
SEED_LIMIT = 2**64  # a seed is one 64-bit word of the generator's key


def epoch_order(
    rows: int, seed: int | None, epoch: int, shard_rows: Sequence[int] = (), window: int | None = None
) -> Rows:
    """Returns the order in which an epoch visits the rows of a split.

    The permutation sorts one 64-bit word per row, drawn from the raw stream of Philox4x64-10 with the
    key `(seed, epoch)`. Raw streams never change between versions of NumPy; its shuffling methods may.

    With a window, the shards are shuffled the same way and taken `window` at a time; the rows of each such
    group are shuffled together. At any time, no more than `window` shards are being read.

    Args:
        rows: Number of rows in the split.
        seed: Seed of the shuffling, 0 to 2**64 - 1; None keeps the stored order.
        epoch: Number of the epoch, from 0.
        shard_rows: Rows of every shard, in row order; required with a window.
        window: Number of shards that are shuffled together; None, or as many as there are, for all.

    Returns:
        int64 `[rows]`, every row exactly once.

    Raises:
        ConfigError: The seed is out of range, or the window smaller than 1.
        ValueError: The shards do not add up to the rows.
    """
    if window is not None and window < 1:
        raise ConfigError("a window of at least 1 shard", f"window={window}", "choose a larger window")
    if seed is None:
        return np.arange(rows, dtype=np.int64)
    check_seed(seed)
    words = _draw_words(seed, epoch, rows)
    if window is None:
        return np.argsort(words, kind="stable").astype(np.int64, copy=False)
    if sum(shard_rows) != rows:
        raise ValueError(f"shards of {sum(shard_rows)} rows for an order of {rows}")

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


def steps_per_epoch(rows: int, global_batch: int) -> int:
    """Returns the number of batches that hold every row once; the last one may be padded.

    Raises:
        ConfigError: The batch is smaller than 1.
    """
    if global_batch < 1:
        raise ConfigError("a batch of at least 1", f"batch={global_batch}", "choose a larger batch")
    return -(-rows // global_batch)


def global_batch_rows(order: Rows, step: int, global_batch: int) -> Rows:
    """Returns the rows of one step over all workers.

    Args:
        order: int64 `[rows]` from `epoch_order`.
        step: Number of the step in the epoch, from 0.
        global_batch: Examples per step over all workers.

    Returns:
        int64 `[global_batch]`; `PADDING` beyond the end of the order.
    """
    rows = order[step * global_batch : (step + 1) * global_batch]
    return np.pad(rows, (0, global_batch - len(rows)), constant_values=PADDING)


def worker_slice(rows: Rows, worker: int, workers: int) -> Rows:
    """Returns one worker's contiguous part of a global batch.

    Args:
        rows: Rows of the global batch, int64 `[global_batch]`.
        worker: Rank of the worker, 0 to `workers` - 1.
        workers: Number of workers that share the batch.

    Returns:
        int64 `[global_batch // workers]`.

    Raises:
        ConfigError: The batch cannot be divided evenly.
    """
    size = batch_per_worker(len(rows), workers)
    return rows[worker * size : (worker + 1) * size]


def batch_per_worker(global_batch: int, workers: int) -> int:
    """Returns the number of examples per step and worker.

    Raises:
        ConfigError: The batch cannot be divided evenly; the message names the nearest ones that can.
    """
    if global_batch % workers:
        below = global_batch // workers * workers
        nearest = " or ".join(str(size) for size in (below, below + workers) if size)
        raise ConfigError(
            f"a batch that {workers} workers can share evenly", f"batch={global_batch}", f"use {nearest}"
        )
    return global_batch // workers


def check_seed(seed: int) -> None:
    """Checks that a seed fits into one 64-bit word.

    Raises:
        ConfigError: The seed is out of range.
    """
    if not 0 <= seed < SEED_LIMIT:
        raise ConfigError("a seed from 0 to 2**64 - 1", f"seed={seed}", "choose another seed")
