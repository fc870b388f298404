"""The order on tiny inputs, value by value, and its cost for many rows."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from order_oracle import epoch_order

from pipelines.errors import ConfigError
from pipelines.input import windows
from pipelines.input.order import (
    EpochOrder,
    OrderSpec,
    batch_per_worker,
    check_lane_workers,
    steps_per_epoch,
)


def build_spec(shards: list[int], batch: int, seed: int | None = 1, **options: object) -> OrderSpec:
    return OrderSpec((np.array(shards, np.int64),), batch, seed, **options)


def read_epoch(spec: OrderSpec, epoch: int) -> list[int]:
    """All rows of an epoch, with its padding."""
    order = EpochOrder(spec, epoch)
    rows = order.find_rows(range(order.steps))
    assert rows.dtype == np.int64
    return rows.ravel().tolist()


def test_without_a_seed_rows_keep_the_stored_order() -> None:
    assert read_epoch(build_spec([4], 4, None), epoch=7) == [0, 1, 2, 3]


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
    assert read_epoch(build_spec([3, 2, 4, 1], 5, seed), epoch) == expected
    assert epoch_order(10, seed, epoch).tolist() == expected


def test_the_order_of_many_rows_never_changes() -> None:
    order = np.array(read_epoch(build_spec([100_000], 1000, 42), 5))
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
    assert read_epoch(build_spec([3, 2, 4, 1], 5, seed, window=window), epoch) == expected
    assert epoch_order(10, seed, epoch, [3, 2, 4, 1], window).tolist() == expected


def test_the_order_of_many_rows_in_windows_never_changes() -> None:
    order = np.array(read_epoch(build_spec([1000] * 100, 1000, 42, window=7), 5))
    assert (order * np.arange(100_000) % 1_000_003).sum() == 49_853_769_947


def test_the_order_of_lanes_never_changes() -> None:
    spec = build_spec([3, 2, 4, 1], 4, 0, window=2, lanes=2)
    assert read_epoch(spec, 0) == [8, 5, 2, 4, 6, 7, 3, 9, 0, 1, -1, -1]


def test_a_window_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "SORTED_ROWS", 50)
    spec = build_spec([100, 0, 301, 7], 17, 3)
    assert read_epoch(spec, 2)[:408] == epoch_order(408, 3, 2).tolist()
    order = EpochOrder(spec, 2)
    assert order.find_rows(range(20, 21))[0].tolist() == epoch_order(408, 3, 2)[340:357].tolist()


def test_any_position_of_a_window_in_parts_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "SORTED_ROWS", 3)  # parts of 0 to 9 rows
    monkeypatch.setattr(windows, "DRAWN_ROWS", 7)
    spec = build_spec([100, 0, 301, 7], 1, 3)
    expected = epoch_order(408, 3, 2).tolist()
    order = EpochOrder(spec, 2)
    positions = [0, 407, *np.random.default_rng(0).integers(0, 408, 200).tolist()]
    assert [order.find_rows(range(step, step + 1))[0, 0] for step in positions] == [
        expected[step] for step in positions
    ]


def test_the_words_of_all_rows_are_drawn_once_per_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of a set without a window waits for one pass over its words."""
    rows = 10_000
    counts: list[int] = []
    draw = windows.draw_words

    def draw_and_count(seed: int, epoch: int, stream: int, start: int, count: int) -> np.ndarray:
        if stream % 2 == 0:  # words of rows, not of shards
            counts.append(count)
        return draw(seed, epoch, stream, start, count)

    monkeypatch.setattr(windows, "draw_words", draw_and_count)
    monkeypatch.setattr(windows, "SORTED_ROWS", 2500)
    order = EpochOrder(build_spec([100] * 100, 10, 0), 0)
    order.find_rows(range(1))
    assert sum(counts) == rows
    for step in range(order.steps):
        order.find_rows(range(step, step + 1))
    assert sum(counts) == 4 * rows


@pytest.mark.parametrize("sorted_rows", [50, 10_000])
def test_equal_words_keep_the_stored_order(monkeypatch: pytest.MonkeyPatch, sorted_rows: int) -> None:
    monkeypatch.setattr(windows, "SORTED_ROWS", sorted_rows)
    monkeypatch.setattr(windows, "draw_words", lambda *args: np.zeros(args[-1], np.uint64))
    assert read_epoch(build_spec([500] * 4, 20), 0) == list(range(2000))


@pytest.mark.parametrize("lanes", [1, 8])
def test_a_step_in_the_middle_needs_the_words_of_its_windows_alone(
    lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set of 10**8 rows: neither the rows before a step nor those of other workers are computed."""
    counts: list[int] = []
    draw = windows.draw_words

    def draw_and_count(*args: int) -> np.ndarray:
        counts.append(args[-1])
        return draw(*args)

    monkeypatch.setattr(windows, "draw_words", draw_and_count)
    shard_rows = np.full(10**4, 10**4)
    spec = OrderSpec((shard_rows,), 1024, 5, 16, lanes)
    tracemalloc.start()
    order = EpochOrder(spec, 3)
    rows = order.find_rows(range(order.steps // 2, order.steps // 2 + 1), 3, 8)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows.shape == (1, 128)
    assert sum(counts) == 10**4 + 160_000 // lanes
    assert memory < 2**24


def test_the_windows_of_a_worker_are_the_shards_it_reads() -> None:
    shards = [3, 2, 0, 4, 1, 6, 2, 2]
    spec = build_spec(shards, 4, 5, window=2, lanes=2)
    order = EpochOrder(spec, 1)
    shard_of_row = np.repeat(np.arange(len(shards)), shards)
    for worker in range(2):
        before: set[int] = set()
        starts = dict(order.iterate_windows(1, worker, 2))
        assert next(iter(starts)) == 1
        current: set[int] = set()
        for step in range(1, order.steps):
            before = current
            current = set(starts[step].tolist()) if step in starts else current
            rows = order.find_rows(range(step, step + 1), worker, 2)
            needed = set(shard_of_row[rows[rows >= 0]].tolist())
            assert needed <= current | (before if step in starts else set())
        assert max(len(numbers) for numbers in starts.values()) <= 2


def test_a_worker_reads_the_shards_of_its_lanes_and_two_in_part() -> None:
    shards = [100] * 64
    order = EpochOrder(build_spec(shards, 64, 7, window=16, lanes=8), 0)
    rows_of_workers = [order.find_rows(range(order.steps), worker, 4) for worker in range(4)]
    read = [np.unique(rows[rows >= 0] // 100) for rows in rows_of_workers]
    assert sum(len(numbers) for numbers in read) <= 64 + 3


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_below_one_is_refused(window: int) -> None:
    with pytest.raises(ConfigError, match=f"window={window}"):
        build_spec([2, 2], 4, window=window)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_named(seed: int) -> None:
    with pytest.raises(ConfigError, match=f"seed={seed}"):
        build_spec([3], 3, seed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lanes": 0}, "lanes=0"),
        ({"lanes": 5}, "batch=12 lanes=5. Fix: use a batch of 10 or 15, or 4 or 6 lanes"),
        ({"lanes": 4, "window": 6}, "window=6 lanes=4. Fix: use a window of 4 or 8, or 3 or 6 lanes"),
    ],
)
def test_lanes_that_do_not_divide_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_spec([3], 12, **options)


def test_workers_that_do_not_divide_the_lanes_are_refused() -> None:
    check_lane_workers(1, 3)
    check_lane_workers(6, 3)
    with pytest.raises(ConfigError, match=r"workers=4 lanes=6. Fix: use 3 or 6 workers, or 4 or 8 lanes"):
        check_lane_workers(6, 4)


@pytest.mark.parametrize(("rows", "batch", "steps"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2), (8, 4, 2)])
def test_steps_round_up(rows: int, batch: int, steps: int) -> None:
    assert steps_per_epoch(rows, batch) == steps


@pytest.mark.parametrize("batch", [0, -2])
def test_a_batch_below_one_is_refused(batch: int) -> None:
    with pytest.raises(ConfigError, match=f"batch={batch}"):
        steps_per_epoch(5, batch)


def test_a_batch_is_a_slice_of_the_order_padded_at_the_end() -> None:
    order = EpochOrder(build_spec([5], 3, None), 0)
    assert order.find_rows(range(3)).tolist() == [[0, 1, 2], [3, 4, -1], [-1, -1, -1]]


def test_workers_take_contiguous_slices() -> None:
    order = EpochOrder(build_spec([5], 6, None), 0)
    assert [order.find_rows(range(1), worker, 3).tolist() for worker in range(3)] == [
        [[0, 1]],
        [[2, 3]],
        [[4, -1]],
    ]


@pytest.mark.parametrize(
    ("batch", "workers", "nearest"), [(10, 4, "use 8 or 12"), (2, 3, "use 3"), (7, 2, "use 6 or 8")]
)
def test_a_batch_that_does_not_divide_names_the_nearest_that_do(
    batch: int, workers: int, nearest: str
) -> None:
    with pytest.raises(ConfigError, match=f"batch={batch}. Fix: {nearest}\\.$"):
        batch_per_worker(batch, workers)
