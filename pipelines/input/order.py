"""Which rows make which batch: a pure function of seed, epoch and step, the same on every machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ConfigError

Rows = NDArray[np.int64]

PADDING = -1  # the row number of a place in the last batch that no example fills
SEED_LIMIT = 2**64  # a seed is one 64-bit word of the generator's key


def epoch_order(rows: int, seed: int | None, epoch: int) -> Rows:
    """The order in which an epoch visits the rows of a split.

    The permutation sorts one 64-bit word per row, drawn from the raw stream of Philox4x64-10 with the
    key `(seed, epoch)`. Raw streams never change between versions of NumPy; its shuffling methods may.

    Args:
        rows: Number of rows.
        seed: Which shuffling, 0 to 2**64 - 1; None keeps the stored order.
        epoch: Which epoch, from 0.

    Returns:
        int64 `[rows]`, every row exactly once.

    Raises:
        ConfigError: The seed is out of range.
    """
    if seed is None:
        return np.arange(rows, dtype=np.int64)
    check_seed(seed)
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(rows)
    return np.argsort(words, kind="stable").astype(np.int64)


def steps_per_epoch(rows: int, global_batch: int) -> int:
    """Number of batches that hold every row once; the last one may be padded.

    Raises:
        ConfigError: The batch is smaller than 1.
    """
    if global_batch < 1:
        raise ConfigError("a batch of at least 1", f"batch={global_batch}", "choose a larger batch")
    return -(-rows // global_batch)


def global_batch_rows(order: Rows, step: int, global_batch: int) -> Rows:
    """The rows of one step over all workers.

    Args:
        order: int64 `[rows]` from `epoch_order`.
        step: Which step of the epoch, from 0.
        global_batch: Examples per step over all workers.

    Returns:
        int64 `[global_batch]`; beyond the end of the order, -1.
    """
    taken = order[step * global_batch : (step + 1) * global_batch]
    return np.pad(taken, (0, global_batch - len(taken)), constant_values=PADDING)


def worker_slice(rows: Rows, worker: int, workers: int) -> Rows:
    """One worker's contiguous part of a global batch.

    Args:
        rows: int64 `[global_batch]`.
        worker: Which worker, 0 to `workers` - 1.
        workers: How many workers share the batch.

    Returns:
        int64 `[global_batch // workers]`.

    Raises:
        ConfigError: The batch cannot be shared out evenly.
    """
    size = per_worker(len(rows), workers)
    return rows[worker * size : (worker + 1) * size]


def per_worker(global_batch: int, workers: int) -> int:
    """Examples per step and worker.

    Raises:
        ConfigError: The batch cannot be shared out evenly; the message names the nearest that can.
    """
    if global_batch % workers:
        below = global_batch // workers * workers
        nearest = " or ".join(str(size) for size in (below, below + workers) if size)
        raise ConfigError(f"a batch that {workers} workers can share evenly", f"batch={global_batch}", f"use {nearest}")
    return global_batch // workers


def check_seed(seed: int) -> None:
    """Checks that a seed fits one 64-bit word.

    Raises:
        ConfigError: It does not.
    """
    if not 0 <= seed < SEED_LIMIT:
        raise ConfigError("a seed from 0 to 2**64 - 1", f"seed={seed}", "choose another seed")
