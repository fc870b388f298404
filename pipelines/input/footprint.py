"""How much of a shard set a training uses at the same time: what the shard cache must hold of it."""

from __future__ import annotations

import numpy as np

from pipelines.input.mix import AnyReader, list_readers, open_reader
from pipelines.input.order import OrderSpec
from pipelines.input.passes import build_fill_order, build_order
from pipelines.input.windows import Rows
from pipelines.remote.needs import Need, add_needs
from pipelines.remote.uri import Location
from pipelines.spec import DataSpec

# Steps that one pass may be ahead of another: their batches are decoded, or are being decoded.
AHEAD_STEPS = 16


def measure_need(reader: AnyReader, order: OrderSpec, workers: int = 1, passes: int = 1) -> dict[str, Need]:
    """Measures what the cache must hold of the sets on stores that one split is read from.

    Args:
        reader: Reader of the split.
        order: Order in which it is read.
        workers: Number of workers that share every batch, and the lanes.
        passes: Number of passes on this machine that read the same lanes, some steps before or after each
            other.

    Returns:
        Needs by location; empty for local sets.
    """
    lanes = -(-order.lanes // workers)
    needs: dict[str, Need] = {}
    for part, shard_rows in zip(list_readers(reader), order.shard_rows, strict=True):
        if part.metrics() is None:
            continue
        window = _count_window_shards(order, len(shard_rows))
        windows = count_windows(shard_rows, window, order.global_batch // order.lanes, passes)
        need = part.measure_need(windows * window * lanes)
        needs = add_needs([needs, {str(part.location): need}])
    return needs


def measure_training(
    location: str | Location, data: DataSpec, global_batch: int, seed: int, workers: int
) -> dict[str, Need]:
    """Measures what one worker of a training needs at least, whatever it will cache in RAM.

    Args:
        location: Shard set named by `--data`.
        data: Settings of the run.
        global_batch: Examples per step over all workers.
        seed: Seed of the order.
        workers: Number of workers.

    Raises:
        DataError: A shard set does not exist or is damaged, or the sets cannot be mixed.
    """
    reader = open_reader(location, "train", data)
    if data.cache != "none":
        return measure_need(reader, build_fill_order(reader))
    parts = [measure_need(reader, build_order(reader, data, global_batch, seed), workers)]
    if "validation" in reader.manifest.splits:
        reader = open_reader(location, "validation", data)
        parts.append(measure_need(reader, build_order(reader, data, global_batch, None), workers))
    return add_needs(parts)


def count_windows(shard_rows: Rows, window: int, step_rows: int, passes: int = 1) -> int:
    """Returns the largest number of windows of a lane that are in use at the same time.

    A step may take rows from the windows that begin in it, of which there are several where windows are
    smaller than batches, and from those that began in an earlier step.

    Args:
        shard_rows: Rows of every shard, int64 `[shards]`.
        window: Shards in a window.
        step_rows: Rows of the lane in a batch.
        passes: Number of passes over these windows.
    """
    begins_in_step = _count_between(shard_rows, window, step_rows - 1)
    begins_in_two_steps = _count_between(shard_rows, window, 2 * (step_rows - 1))
    windows = 2 + min(2 * begins_in_step, begins_in_two_steps)
    if passes > 1:
        windows += 1 + _count_between(shard_rows, window, AHEAD_STEPS * step_rows - 1)
    return windows


def describe_window(data: DataSpec) -> str:
    """Returns the settings that decide how much is in use at the same time, for messages."""
    window = "all" if data.window is None else data.window
    sets = " for each set of data.mix" if data.mix else ""
    settings = f"data.window={window}, data.lanes={data.lanes}"
    return f"two windows of shards are in use at a time{sets}, and those of validation ({settings})"


def _count_window_shards(order: OrderSpec, shards: int) -> int:
    """Returns the number of shards in a window of one lane."""
    if order.seed is None:
        return 1
    return -(-(order.window or shards) // order.lanes)


def _count_between(shard_rows: Rows, window: int, rows: int) -> int:
    """Returns how many whole windows so many rows hold, if the smallest shards come one after the other."""
    ends = np.cumsum(np.sort(shard_rows))[window - 1 :: window]
    return int(np.searchsorted(ends, rows, side="right"))
