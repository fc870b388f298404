"""What the hosts of a training fetch per epoch."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pipelines.input.egress import GOOD_EGRESS, bound_egress, describe_egress
from pipelines.input.order import EpochOrder, OrderSpec


def count_egress(shard_rows: np.ndarray, hosts: int, lanes: int, seed: int) -> float:
    """Counts how often the rows of a set are fetched in an epoch."""
    order = EpochOrder(OrderSpec((shard_rows,), 32, seed, None, lanes), 0)
    fetched = 0
    for host in range(hosts):
        shards = np.unique(
            np.concatenate([list(window) for _, window in order.iterate_windows(0, host, hosts)])
        )
        fetched += int(shard_rows[shards].sum())
    return fetched / int(shard_rows.sum())


@pytest.mark.parametrize("lanes", [1, 8, 16])
@pytest.mark.parametrize("shards", [9, 40, 200])
def test_no_order_fetches_more_than_the_bound(shards: int, lanes: int) -> None:
    shard_rows = np.random.default_rng(shards).integers(1, 100, shards)
    bound = bound_egress(shard_rows, 8, lanes)
    counts = [count_egress(shard_rows, 8, lanes, seed) for seed in range(20)]
    assert max(counts) <= bound
    assert max(counts) > 1 + (bound - 1) / 2  # the bound is not far away


def test_equal_shards_that_the_hosts_divide_are_fetched_once() -> None:
    assert count_egress(np.full(40, 64), 8, 8, 0) == 1.0


def test_one_host_has_nothing_to_divide() -> None:
    assert describe_egress(np.full(10, 100), 1, 1, 4) is None
    assert describe_egress(np.full(10, 100), 1, 4, 4) is None


def test_without_lanes_the_sentence_names_them() -> None:
    text = describe_egress(np.full(10, 100), 2, 1, 8)
    assert text == (
        "egress: each of 2 hosts fetches the whole set in every epoch; "
        "data.lanes=8 would divide it among them"
    )


def test_many_shards_need_no_advice() -> None:
    assert describe_egress(np.full(1000, 10**8), 32, 64, 32) == (
        "egress: 32 hosts fetch at most 1.03 times the set per epoch"
    )


def test_shards_of_the_size_in_the_sentence_meet_the_goal() -> None:
    text = describe_egress(np.full(320, 96 * 10**6), 32, 32, 32)
    assert text is not None
    assert text.startswith("egress: 32 hosts fetch at most 1.10 times the set per epoch; shards of at most ")
    match = re.search(r"at most ([\d.]+) MB would make it 1.05$", text)
    assert match
    size = int(float(match[1]) * 1e6)
    count = 320 * 96 * 10**6 // size
    assert GOOD_EGRESS - 0.001 < bound_egress(np.full(count, size), 32, 32) < GOOD_EGRESS + 0.001
