"""Properties of the order for any number of rows, batch size, number of workers and seed."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.input.order import epoch_order, global_batch_rows, steps_per_epoch, worker_slice

SHARDS = st.lists(st.integers(0, 30), max_size=12)  # rows of every shard
WINDOWS = st.none() | st.integers(1, 14)
SEEDS = st.none() | st.integers(0, 2**64 - 1)
EPOCHS = st.integers(0, 1000)
WORKERS = st.integers(1, 8)
PER_WORKER = st.integers(1, 9)


@settings(deadline=None)
@given(SHARDS, WINDOWS, SEEDS, EPOCHS, WORKERS, PER_WORKER)
def test_the_workers_together_see_every_row_exactly_once(
    shards: list[int], window: int | None, seed: int | None, epoch: int, workers: int, size: int
) -> None:
    rows = sum(shards)
    batch = workers * size
    order = epoch_order(rows, seed, epoch, shards, window)
    visited = [
        row
        for step in range(steps_per_epoch(rows, batch))
        for worker in range(workers)
        for row in worker_slice(global_batch_rows(order, step, batch), worker, workers).tolist()
    ]
    assert sorted(row for row in visited if row != -1) == list(range(rows))
    assert visited == order.tolist() + [-1] * (len(visited) - rows)  # padding comes at the very end
    assert len(visited) - rows < batch


@settings(deadline=None)
@given(SHARDS, WINDOWS, SEEDS, PER_WORKER, WORKERS, st.integers(0, 5))
def test_the_global_batch_does_not_depend_on_the_number_of_workers(
    shards: list[int], window: int | None, seed: int | None, size: int, workers: int, step: int
) -> None:
    rows = global_batch_rows(epoch_order(sum(shards), seed, 1, shards, window), step, workers * size)
    parts = [worker_slice(rows, worker, workers) for worker in range(workers)]
    assert [len(part) for part in parts] == [size] * workers
    assert np.concatenate(parts).tolist() == rows.tolist()


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 9), max_size=6), WINDOWS, st.integers(0, 2**64 - 1), EPOCHS, st.integers(1, 12)
)
def test_resuming_at_every_step_gives_the_rest(
    shards: list[int], window: int | None, seed: int, epoch: int, batch: int
) -> None:
    rows = sum(shards)
    steps = steps_per_epoch(rows, batch)
    order = epoch_order(rows, seed, epoch, shards, window)
    whole = [global_batch_rows(order, step, batch).tolist() for step in range(steps)]
    for start in range(steps + 1):
        again = epoch_order(rows, seed, epoch, shards, window)
        rest = [global_batch_rows(again, step, batch).tolist() for step in range(start, steps)]
        assert rest == whole[start:]


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    st.integers(1, 14),
    st.integers(0, 2**64 - 1),
    EPOCHS,
)
def test_no_more_shards_than_the_window_are_read_at_a_time(
    shards: list[int], window: int, seed: int, epoch: int
) -> None:
    order = epoch_order(sum(shards), seed, epoch, shards, window)
    shard_of_row = np.repeat(np.arange(len(shards)), shards)
    touched = shard_of_row[order].tolist()
    while touched:
        group = set(list(dict.fromkeys(touched))[:window])  # the first shards met
        size = sum(shards[shard] for shard in group)
        assert set(touched[:size]) == group  # all rows of these shards come before any row of another
        touched = touched[size:]


@settings(deadline=None)
@given(SHARDS, st.integers(0, 2**64 - 1), EPOCHS, st.integers(0, 3))
def test_a_window_over_all_shards_is_the_order_without_one(
    shards: list[int], seed: int, epoch: int, more: int
) -> None:
    window = max(len(shards), 1) + more
    assert (
        epoch_order(sum(shards), seed, epoch, shards, window).tolist()
        == epoch_order(sum(shards), seed, epoch).tolist()
    )


@settings(deadline=None)
@given(st.integers(30, 200), st.integers(0, 2**64 - 1), EPOCHS, EPOCHS)
def test_epochs_and_seeds_differ(rows: int, seed: int, one: int, other: int) -> None:
    if one != other:
        assert epoch_order(rows, seed, one).tolist() != epoch_order(rows, seed, other).tolist()
    assert epoch_order(rows, seed, one).tolist() != epoch_order(rows, (seed + 1) % 2**64, one).tolist()


def test_every_row_is_equally_frequent_at_every_position() -> None:
    """Chi-squared over 2,000 epochs of 8 rows: 99.9 % of fair shuffles are below 85.4."""
    orders = np.stack([epoch_order(8, 11, epoch) for epoch in range(2000)])
    counts = np.stack([np.bincount(orders[:, place], minlength=8) for place in range(8)])
    assert ((counts - 250) ** 2 / 250).sum() < 85.4


def test_every_shard_is_equally_frequent_at_every_position() -> None:
    """Shards in a window of 1, and rows within a shard: 49 and 9 degrees of freedom, limits 85.4 and 27.9."""
    orders = np.stack([epoch_order(32, 7, epoch, [4] * 8, 1) for epoch in range(2000)]).reshape(2000, 8, 4)
    shards = np.stack([np.bincount(orders[:, place, 0] // 4, minlength=8) for place in range(8)])
    assert ((shards - 250) ** 2 / 250).sum() < 85.4
    rows = np.stack([np.bincount(orders[:, :, place].ravel() % 4, minlength=4) for place in range(4)])
    assert ((rows - 4000) ** 2 / 4000).sum() < 27.9
    # the shard and the row in it are independent
    assert abs(np.corrcoef(orders[:, 0, 0] // 4, orders[:, 0, 0] % 4)[0, 1]) < 0.07
