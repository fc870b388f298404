"""Tells how much of a set on a store the hosts of a training fetch in an epoch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GOOD_EGRESS = 1.05  # times the set; more is worth a sentence


def bound_egress(shard_bytes: NDArray[np.int64], hosts: int, lanes: int) -> float:
    """Returns the largest number of times that a set is fetched per epoch, with a cache on every host.

    Without lanes, every host fetches every shard. With lanes, each host has a range of the shards in their
    random order. All ranges have equally many rows, so that a shard may lie across the border of two ranges
    and is fetched by both hosts. Whole shards cannot be divided equally, unless their sizes happen to match.

    Args:
        shard_bytes: Size of every shard, int64 `[shards]`.
        hosts: Number of hosts.
        lanes: Lanes of the order, a multiple of the hosts, or 1.
    """
    if lanes == 1:
        return float(hosts)
    total = int(shard_bytes.sum())
    borders = -(-shard_bytes * hosts // total)  # that a shard can lie across
    shared = np.sort(np.repeat(shard_bytes, borders))[::-1][: hosts - 1]
    return 1 + int(shared.sum()) / total


def describe_egress(shard_bytes: NDArray[np.int64], hosts: int, lanes: int, workers: int) -> str | None:
    """Describes the expected egress of an epoch, and how to reduce it; None for one host.

    Args:
        shard_bytes: Size of every shard, int64 `[shards]`.
        hosts: Number of hosts.
        lanes: Lanes of the order.
        workers: Number of workers on all hosts.
    """
    if hosts == 1:
        return None
    if lanes == 1:
        text = f"egress: each of {hosts} hosts fetches the whole set in every epoch"
        return f"{text}; data.lanes={workers} would divide it among them"
    egress = bound_egress(shard_bytes, hosts, lanes)
    text = f"egress: {hosts} hosts fetch at most {egress:.2f} times the set per epoch"
    if egress > GOOD_EGRESS:
        largest = int(shard_bytes.sum()) * (GOOD_EGRESS - 1) / (hosts - 1)
        text += f"; shards of at most {largest / 1e6:.3g} MB would make it {GOOD_EGRESS}"
    return text
