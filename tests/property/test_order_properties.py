"""Properties of the order for any number of rows, batch size, number of workers, lanes, sets and seed."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from order_oracle import epoch_order

from pipelines.input.mixture import compute_draws
from pipelines.input.order import EpochOrder, OrderSpec

SHARDS = st.lists(st.integers(0, 30), max_size=12)  # rows of every shard
WINDOWS = st.none() | st.integers(1, 14)
SEEDS = st.none() | st.integers(0, 2**64 - 1)
EPOCHS = st.integers(0, 1000)
WORKERS = st.integers(1, 8)
PER_WORKER = st.integers(1, 9)
LANES = st.integers(1, 6)
REPEATS = st.integers(1, 4)
WEIGHTS = st.lists(st.integers(1, 9), min_size=1, max_size=3)


@st.composite
def specs(draw: st.DrawFn, has_lanes: bool = True, is_mix: bool = True) -> OrderSpec:
    """Any order, with a batch and a window that its lanes divide."""
    lanes = draw(LANES) if has_lanes else 1
    window = draw(WINDOWS)
    seed = draw(SEEDS)
    batch = lanes * draw(PER_WORKER)
    window = None if window is None else window * lanes
    if not is_mix or draw(st.booleans()):
        repeats = draw(REPEATS) if is_mix else 1
        return OrderSpec((np.array(draw(SHARDS), np.int64),), batch, seed, window, lanes, repeats=repeats)
    weights = draw(WEIGHTS)
    sets = [np.array([draw(st.integers(20, 40)), *draw(SHARDS)], np.int64) for _ in weights]
    rows = [int(shards.sum()) for shards in sets]
    epoch_images = draw(st.none() | st.integers(50, 200))
    return OrderSpec(tuple(sets), batch, seed, window, lanes, compute_draws(rows, weights, epoch_images))


@st.composite
def repeated_specs(draw: st.DrawFn) -> OrderSpec:
    """An order with repeats in which an epoch has several windows."""
    lanes = draw(st.integers(1, 2))
    shards = draw(st.lists(st.integers(3, 20), min_size=6, max_size=12))
    batch = lanes * draw(st.integers(1, 4))
    window = lanes * draw(st.integers(1, 2))
    return OrderSpec((np.array(shards),), batch, draw(SEEDS), window, lanes, repeats=draw(st.integers(2, 4)))


def read_epoch(spec: OrderSpec, epoch: int, workers: int = 1) -> np.ndarray:
    """The batches of an epoch, `[steps, batch]`, as its workers read them, each with an order of its own."""
    steps = EpochOrder(spec, epoch).steps
    parts = [EpochOrder(spec, epoch).find_rows(range(steps), worker, workers) for worker in range(workers)]
    return np.concatenate(parts, axis=1)


@given(specs(has_lanes=False, is_mix=False), EPOCHS)
def test_one_lane_is_the_order_that_is_computed_at_once(spec: OrderSpec, epoch: int) -> None:
    shards = spec.shard_rows[0].tolist()
    window = spec.window if spec.seed is not None else None
    expected = epoch_order(spec.rows, spec.seed, epoch, shards, window).tolist()
    batches = read_epoch(spec, epoch).ravel().tolist()
    assert batches == expected + [-1] * (len(batches) - spec.rows)


@given(specs(is_mix=False), EPOCHS)
def test_every_row_comes_once_and_padding_at_the_very_end(spec: OrderSpec, epoch: int) -> None:
    batches = read_epoch(spec, epoch).ravel()
    assert sorted(batches[: spec.rows].tolist()) == list(range(spec.rows))
    assert (batches[spec.rows :] == -1).all()
    assert len(batches) - spec.rows < spec.global_batch


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(2, 4),
    st.integers(0, 2**64 - 1),
)
def test_an_epoch_repeats_every_image_that_it_takes(
    shards: list[int], lanes: int, per_lane: int, repeats: int, seed: int
) -> None:
    batch = lanes * per_lane
    spec = OrderSpec((np.array(shards, np.int64),), batch, seed, None, lanes, repeats=repeats)
    order = EpochOrder(spec, 0)
    rows = order.find_rows(range(order.steps))
    copies = order.find_copies(range(order.steps))
    is_real = rows >= 0
    assert is_real.sum() == sum(shards)  # as many examples as without repeats
    assert (copies[~is_real] == 0).all()
    for lane in range(lanes):
        part = slice(lane * per_lane, (lane + 1) * per_lane)
        by_row: dict[int, list[int]] = {}
        for row, copy in zip(rows[:, part][is_real[:, part]], copies[:, part][is_real[:, part]], strict=True):
            by_row.setdefault(int(row), []).append(int(copy))
        numbers = [sorted(numbers) for numbers in by_row.values()]
        if sum(shards) >= repeats * lanes:  # else a set is passed twice
            assert all(count == list(range(len(count))) for count in numbers)
            assert sum(count != list(range(repeats)) for count in numbers) <= 1  # the last one of the lane
    for step in range(order.steps):
        in_lane = copies[step, :per_lane][is_real[step, :per_lane]]
        assert (np.diff(in_lane) >= 0).all()  # first copies first


@settings(max_examples=30)
@given(st.integers(10, 60), st.integers(2, 4), st.integers(0, 2**64 - 1))
def test_epochs_with_repeats_use_all_images_equally_often(rows: int, repeats: int, seed: int) -> None:
    spec = OrderSpec((np.array([rows * repeats]),), 4, seed, repeats=repeats)
    epochs = [read_epoch(spec, epoch).ravel() for epoch in range(repeats)]
    counts = np.bincount(np.concatenate(epochs)[np.concatenate(epochs) >= 0], minlength=rows * repeats)
    assert (counts == repeats).all()


@settings(max_examples=50)
@given(specs(), EPOCHS)
def test_batches_do_not_depend_on_the_number_of_workers(spec: OrderSpec, epoch: int) -> None:
    whole = read_epoch(spec, epoch)
    for workers in range(1, spec.global_batch + 1):
        if spec.global_batch % workers == 0:  # whether it divides the lanes or not
            np.testing.assert_array_equal(read_epoch(spec, epoch, workers), whole)


@settings(max_examples=40)
@given(specs(), EPOCHS, st.integers(1, 7))
def test_resuming_at_every_step_gives_the_rest(spec: OrderSpec, epoch: int, ahead: int) -> None:
    """Whatever number of steps is computed at a time."""
    whole = read_epoch(spec, epoch)
    for start in range(len(whole)):
        order = EpochOrder(spec, epoch)
        for step in range(start, len(whole), ahead):
            steps = range(step, min(step + ahead, len(whole)))
            np.testing.assert_array_equal(order.find_rows(steps), whole[steps.start : steps.stop])


@given(specs() | repeated_specs(), EPOCHS, st.data())
def test_windows_announce_what_every_step_reads(spec: OrderSpec, epoch: int, data: st.DataObject) -> None:
    order = EpochOrder(spec, epoch)
    if order.steps == 0:
        return
    shard_rows = np.concatenate(spec.shard_rows)
    shard_of_row = np.repeat(np.arange(len(shard_rows)), shard_rows)
    start = data.draw(st.integers(0, order.steps - 1))
    for worker in range(spec.lanes):
        items = list(order.iterate_windows(start, worker, spec.lanes))
        windows = dict(items)
        assert [step for step, _ in items] == sorted(windows)
        before: set[int] = set()
        current: set[int] = set()
        for step in range(start, order.steps):
            if step in windows:
                before = current
                current = set(windows[step].tolist())
            rows = order.find_rows(range(step, step + 1), worker, spec.lanes)
            needed = set(shard_of_row[rows[rows >= 0]].tolist())
            assert needed <= current | (before if step in windows else set())


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    st.integers(1, 14),
    st.integers(0, 2**64 - 1),
    EPOCHS,
)
def test_no_more_shards_than_the_window_are_read_at_a_time(
    shards: list[int], window: int, seed: int, epoch: int
) -> None:
    spec = OrderSpec((np.array(shards),), 1, seed, window)
    shard_of_row = np.repeat(np.arange(len(shards)), shards)
    touched = shard_of_row[read_epoch(spec, epoch).ravel()].tolist()
    while touched:
        group = set(list(dict.fromkeys(touched))[:window])  # the first shards met
        size = sum(shards[shard] for shard in group)
        assert set(touched[:size]) == group  # all rows of these shards come before any row of another
        touched = touched[size:]


@given(SHARDS, st.integers(0, 2**64 - 1), EPOCHS, st.integers(0, 3))
def test_a_window_over_all_shards_is_the_order_without_one(
    shards: list[int], seed: int, epoch: int, more: int
) -> None:
    window = max(len(shards), 1) + more
    spec = OrderSpec((np.array(shards, np.int64),), 4, seed, window)
    batches = read_epoch(spec, epoch).ravel()[: spec.rows]
    assert batches.tolist() == epoch_order(sum(shards), seed, epoch).tolist()


@given(st.lists(st.integers(1, 30), min_size=2, max_size=40), st.integers(2, 6), EPOCHS)
def test_workers_share_no_shards_but_those_at_their_borders(
    shards: list[int], workers: int, epoch: int
) -> None:
    spec = OrderSpec((np.array(shards),), 2 * workers, 3, workers, workers)
    shard_of_row = np.repeat(np.arange(len(shards)), shards)
    steps = EpochOrder(spec, epoch).steps
    reads = 0
    for worker in range(workers):
        rows = EpochOrder(spec, epoch).find_rows(range(steps), worker, workers)
        reads += len(np.unique(shard_of_row[rows[rows >= 0]]))
    assert reads <= len(shards) + workers - 1


@given(specs(), st.integers(0, 20))
def test_a_mix_draws_every_set_as_often_as_agreed(spec: OrderSpec, epoch: int) -> None:
    if spec.draws is None or spec.seed is None:
        return
    rows = read_epoch(spec, epoch)
    ends = np.cumsum([int(shards.sum()) for shards in spec.shard_rows])
    counts = np.bincount(np.searchsorted(ends, rows[rows >= 0], side="right"), minlength=len(ends))
    assert counts.tolist() == list(spec.draws)


@given(specs())
def test_a_set_of_a_mix_is_continued_until_all_its_rows_have_been_drawn(spec: OrderSpec) -> None:
    """After any number of epochs, the rows of a set have been drawn equally often, up to once."""
    if spec.draws is None or spec.seed is None:
        return
    counts = np.zeros(sum(int(shards.sum()) for shards in spec.shard_rows), np.int64)
    for epoch in range(5):
        rows = read_epoch(spec, epoch)
        counts += np.bincount(rows[rows >= 0], minlength=len(counts))
        start = 0
        for shards in spec.shard_rows:
            of_set = counts[start : start + int(shards.sum())]
            assert of_set.max() - of_set.min() <= 1
            start += len(of_set)


@given(st.lists(st.tuples(st.integers(100, 10**6), st.integers(1, 50)), min_size=1, max_size=5))
def test_an_epoch_of_a_mix_ends_when_the_first_set_has_been_seen(sets: list[tuple[int, int]]) -> None:
    rows = [count for count, _ in sets]
    weights = [weight for _, weight in sets]
    draws = compute_draws(rows, weights)
    assert any(drawn == count for drawn, count in zip(draws, rows, strict=True))
    assert all(drawn <= count for drawn, count in zip(draws, rows, strict=True))
    assert max(abs(d - sum(draws) * w / sum(weights)) for d, w in zip(draws, weights, strict=True)) < len(
        sets
    )
    exact = compute_draws(rows, weights, 10_000)
    assert sum(exact) == 10_000
    assert max(abs(d - 10_000 * w / sum(weights)) for d, w in zip(exact, weights, strict=True)) < 1


@given(st.integers(30, 200), st.integers(0, 2**64 - 1), EPOCHS, EPOCHS)
def test_epochs_and_seeds_differ(rows: int, seed: int, one: int, other: int) -> None:
    spec = OrderSpec((np.array([rows]),), rows, seed)
    other_spec = OrderSpec((np.array([rows]),), rows, (seed + 1) % 2**64)
    if one != other:
        assert read_epoch(spec, one).tolist() != read_epoch(spec, other).tolist()
    assert read_epoch(spec, one).tolist() != read_epoch(other_spec, one).tolist()


def test_every_row_is_equally_frequent_at_every_position() -> None:
    """Chi-squared over 2,000 epochs of 8 rows: 99.9 % of fair shuffles are below 85.4."""
    spec = OrderSpec((np.array([8]),), 8, 11)
    orders = np.stack([read_epoch(spec, epoch)[0] for epoch in range(2000)])
    counts = np.stack([np.bincount(orders[:, place], minlength=8) for place in range(8)])
    assert ((counts - 250) ** 2 / 250).sum() < 85.4


def test_every_shard_is_equally_frequent_at_every_position() -> None:
    """Shards in a window of 1, and rows within a shard: 49 and 9 degrees of freedom, limits 85.4 and 27.9."""
    spec = OrderSpec((np.full(8, 4),), 32, 7, 1)
    orders = np.stack([read_epoch(spec, epoch) for epoch in range(2000)]).reshape(2000, 8, 4)
    shards = np.stack([np.bincount(orders[:, place, 0] // 4, minlength=8) for place in range(8)])
    assert ((shards - 250) ** 2 / 250).sum() < 85.4
    rows = np.stack([np.bincount(orders[:, :, place].ravel() % 4, minlength=4) for place in range(4)])
    assert ((rows - 4000) ** 2 / 4000).sum() < 27.9
    # the shard and the row in it are independent
    assert abs(np.corrcoef(orders[:, 0, 0] // 4, orders[:, 0, 0] % 4)[0, 1]) < 0.07
