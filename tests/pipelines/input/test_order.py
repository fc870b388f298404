"""The order on tiny inputs, value by value."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.errors import ConfigError
from pipelines.input.order import epoch_order, global_batch_rows, steps_per_epoch, worker_slice


def test_without_a_seed_rows_keep_the_stored_order() -> None:
    order = epoch_order(4, None, epoch=7)
    assert order.dtype == np.int64
    assert order.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("seed", "epoch", "expected"),
    [
        (0, 0, [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]),
        (0, 1, [5, 3, 7, 8, 2, 4, 1, 0, 6, 9]),
        (1, 0, [3, 5, 2, 9, 7, 0, 8, 6, 1, 4]),
        (2**64 - 1, 3, [3, 2, 8, 0, 1, 6, 9, 5, 4, 7]),
    ],
)
def test_the_order_of_a_seed_never_changes(seed: int, epoch: int, expected: list[int]) -> None:
    order = epoch_order(10, seed, epoch)
    assert order.dtype == np.int64
    assert order.tolist() == expected


def test_the_order_of_many_rows_never_changes() -> None:
    order = epoch_order(100_000, 42, 5)
    assert (order * np.arange(100_000) % 1_000_003).sum() == 49_904_067_488


@pytest.mark.parametrize(
    ("window", "seed", "epoch", "expected"),
    [
        (1, 0, 0, [8, 5, 6, 7, 0, 2, 1, 4, 3, 9]),
        (1, 0, 1, [2, 1, 0, 3, 4, 5, 7, 8, 6, 9]),
        (2, 0, 0, [0, 2, 1, 8, 5, 6, 7, 9, 4, 3]),
        (3, 2**64 - 1, 3, [2, 8, 0, 1, 6, 9, 5, 7, 3, 4]),
    ],
)
def test_the_order_of_a_window_never_changes(window: int, seed: int, epoch: int, expected: list[int]) -> None:
    order = epoch_order(10, seed, epoch, [3, 2, 4, 1], window)
    assert order.dtype == np.int64
    assert order.tolist() == expected


def test_the_order_of_many_rows_in_windows_never_changes() -> None:
    order = epoch_order(100_000, 42, 5, [1000] * 100, 7)
    assert (order * np.arange(100_000) % 1_000_003).sum() == 49_853_769_947


def test_shards_in_a_window_keep_the_stored_order_without_a_seed() -> None:
    assert epoch_order(4, None, 7, [2, 2], 1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_below_one_is_refused(window: int) -> None:
    with pytest.raises(ConfigError, match=f"window={window}"):
        epoch_order(4, 1, 0, [2, 2], window)


@pytest.mark.parametrize("shard_rows", [[], [2, 1], [2, 3]])
def test_shards_that_do_not_add_up_are_refused(shard_rows: list[int]) -> None:
    with pytest.raises(ValueError, match="order of 4"):
        epoch_order(4, 1, 0, shard_rows, 1)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_named(seed: int) -> None:
    with pytest.raises(ConfigError, match=f"seed={seed}"):
        epoch_order(3, seed, 0)


@pytest.mark.parametrize(("rows", "batch", "steps"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2), (8, 4, 2)])
def test_steps_round_up(rows: int, batch: int, steps: int) -> None:
    assert steps_per_epoch(rows, batch) == steps


@pytest.mark.parametrize("batch", [0, -2])
def test_a_batch_below_one_is_refused(batch: int) -> None:
    with pytest.raises(ConfigError, match=f"batch={batch}"):
        steps_per_epoch(5, batch)


@pytest.mark.parametrize(("step", "expected"), [(0, [4, 3, 2]), (1, [1, 0, -1]), (2, [-1, -1, -1])])
def test_a_batch_is_a_slice_of_the_order_padded_at_the_end(step: int, expected: list[int]) -> None:
    rows = global_batch_rows(np.array([4, 3, 2, 1, 0]), step, 3)
    assert rows.dtype == np.int64
    assert rows.tolist() == expected


def test_workers_take_contiguous_slices() -> None:
    rows = np.array([7, 5, 3, 1, 9, -1])
    assert [worker_slice(rows, worker, 3).tolist() for worker in range(3)] == [[7, 5], [3, 1], [9, -1]]


@pytest.mark.parametrize(
    ("batch", "workers", "nearest"), [(10, 4, "use 8 or 12"), (2, 3, "use 3"), (7, 2, "use 6 or 8")]
)
def test_a_batch_that_does_not_divide_names_the_nearest_that_do(
    batch: int, workers: int, nearest: str
) -> None:
    with pytest.raises(ConfigError, match=f"batch={batch}. Fix: {nearest}\\.$"):
        worker_slice(np.arange(batch), 0, workers)
