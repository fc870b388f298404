"""What must hold of the order for every number of rows, batch, worker and seed."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.input.order import epoch_order, global_batch_rows, steps_per_epoch, worker_slice

ROWS = st.integers(0, 200)
SEEDS = st.none() | st.integers(0, 2**64 - 1)
EPOCHS = st.integers(0, 1000)
WORKERS = st.integers(1, 8)
PER_WORKER = st.integers(1, 9)


@settings(deadline=None)
@given(ROWS, SEEDS, EPOCHS, WORKERS, PER_WORKER)
def test_the_workers_together_see_every_row_exactly_once(rows: int, seed: int | None, epoch: int, workers: int, size: int) -> None:
    order, batch = epoch_order(rows, seed, epoch), workers * size
    seen = [
        row
        for step in range(steps_per_epoch(rows, batch))
        for worker in range(workers)
        for row in worker_slice(global_batch_rows(order, step, batch), worker, workers).tolist()
    ]
    assert sorted(row for row in seen if row != -1) == list(range(rows))
    assert seen == order.tolist() + [-1] * (len(seen) - rows)  # padding stands at the very end
    assert len(seen) - rows < batch


@settings(deadline=None)
@given(st.integers(1, 6), WORKERS, st.integers(0, 5))
def test_the_global_batch_does_not_depend_on_the_number_of_workers(size: int, workers: int, step: int) -> None:
    rows = global_batch_rows(epoch_order(50, 3, 1), step, workers * size)
    parts = [worker_slice(rows, worker, workers) for worker in range(workers)]
    assert [len(part) for part in parts] == [size] * workers
    assert np.concatenate(parts).tolist() == rows.tolist()


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 2**64 - 1), EPOCHS, st.integers(1, 12))
def test_resuming_at_every_step_gives_the_rest(rows: int, seed: int, epoch: int, batch: int) -> None:
    steps = steps_per_epoch(rows, batch)
    order = epoch_order(rows, seed, epoch)
    whole = [global_batch_rows(order, step, batch).tolist() for step in range(steps)]
    for start in range(steps + 1):
        again = epoch_order(rows, seed, epoch)
        assert [global_batch_rows(again, step, batch).tolist() for step in range(start, steps)] == whole[start:]


@settings(deadline=None)
@given(st.integers(30, 200), st.integers(0, 2**64 - 1), EPOCHS, EPOCHS)
def test_epochs_and_seeds_differ(rows: int, seed: int, one: int, other: int) -> None:
    if one != other:
        assert epoch_order(rows, seed, one).tolist() != epoch_order(rows, seed, other).tolist()
    assert epoch_order(rows, seed, one).tolist() != epoch_order(rows, (seed + 1) % 2**64, one).tolist()


def test_every_row_comes_everywhere_equally_often() -> None:
    """Chi-squared over 2,000 epochs of 8 rows: 49 degrees of freedom, 99.9 % of fair shuffles stay below 85.4."""
    orders = np.stack([epoch_order(8, 11, epoch) for epoch in range(2000)])
    counts = np.stack([np.bincount(orders[:, place], minlength=8) for place in range(8)])
    assert ((counts - 250) ** 2 / 250).sum() < 85.4
