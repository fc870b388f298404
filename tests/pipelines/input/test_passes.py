"""The windows of a pass: which shards come next, and which are no longer needed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from tiny_shards import solids

from pipelines.input.order import EpochOrder, OrderSpec
from pipelines.input.passes import Pass, PassReader
from pipelines.input.reader import ShardReader


@pytest.mark.parametrize(
    ("lanes", "window", "batch"), [(1, 1, 2), (1, 3, 7), (2, 2, 4), (4, 4, 8), (2, None, 6)]
)
def test_a_shard_is_never_read_after_its_last_window_has_ended(
    write_shards, monkeypatch: pytest.MonkeyPatch, lanes: int, window: int | None, batch: int
) -> None:
    reader = ShardReader(write_shards(solids(25), shard_rows=2), "train")
    planned: list[set[int]] = []
    ended: list[int] = []

    def record_plan(reader: ShardReader, windows: Iterable[np.ndarray]) -> ShardReader:
        planned.extend(set(shards.tolist()) for shards in windows)
        return reader

    monkeypatch.setattr(ShardReader, "plan", record_plan)
    monkeypatch.setattr(ShardReader, "advance", lambda reader, window: ended.append(window))
    spec = OrderSpec((reader.shard_rows,), batch, 3, window, lanes)
    steps = EpochOrder(spec, 0).steps
    one_pass = Pass(spec, 4, 3, 1, steps, worker=lanes - 1, workers=lanes)
    reading = PassReader(reader, one_pass)
    for epoch, steps_of_epoch in one_pass.iterate_steps():
        order = EpochOrder(spec, epoch)
        for step in steps_of_epoch:
            rows = order.find_rows(range(step, step + 1), lanes - 1, lanes)
            shards = set((rows[rows >= 0] // 2).tolist())
            assert shards <= set().union(*planned[max(ended, default=0) :])
            reading.finish(epoch, step)
    assert ended == sorted(set(ended))
    assert ended[-1] == len(planned) - 1


def test_a_pass_over_endless_epochs_plans_no_more_than_is_taken() -> None:
    spec = OrderSpec((np.full(10**5, 1000),), 256, None)
    windows = iter(Pass(spec, 0, 2**20, 0, 10**6))
    assert [next(windows).tolist() for _ in range(3)] == [[0], [1], [2]]


def test_a_pass_can_be_iterated_again() -> None:
    one_pass = Pass(OrderSpec((np.array([3, 4, 5]),), 4, 7, 1), 0, 2, 1, 3)
    assert [shards.tolist() for shards in one_pass] == [shards.tolist() for shards in one_pass]
