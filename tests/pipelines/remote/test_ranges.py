"""Reads in flight at the same time, and objects as files."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
from stores import Bucket, FaultProxy

from pipelines.remote import ranges
from pipelines.remote.errors import ObjectMissingError
from pipelines.remote.ranges import map_ahead, open_object
from pipelines.remote.uri import parse_location


def test_as_many_calls_as_asked_for_are_in_flight():
    barrier = threading.Barrier(4)  # which lets nobody pass before the fourth call

    def wait(item: int) -> int:
        barrier.wait(30)
        return item

    assert list(map_ahead(wait, range(8), 4)) == list(range(8))


def test_results_are_in_the_order_of_the_items():
    order = []
    is_second_done = threading.Event()

    def run(item: int) -> int:
        if item == 0:
            is_second_done.wait(30)
        order.append(item)
        if item == 1:
            is_second_done.set()
        return item

    assert list(map_ahead(run, range(2), 2)) == [0, 1]
    assert order == [1, 0]


def test_an_error_is_raised_when_its_result_is_due():
    results = map_ahead(lambda item: 1 // item, [2, 1, 0, 1], 4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_no_more_calls_are_made_than_are_needed_soon():
    calls = []
    results = map_ahead(calls.append, range(1000), 4)
    next(results)
    results.close()
    assert len(calls) <= 5


@pytest.mark.e2e
def test_an_object_is_read_like_a_file(bucket: Bucket, monkeypatch):
    monkeypatch.setattr(ranges, "PART_BYTES", 1000)  # so that reads are divided
    content = np.random.default_rng(1).bytes(50_000)
    bucket.put("a/b", content)
    uri = parse_location(f"{bucket.url}/a/b")
    expected = io.BytesIO(content)
    with open_object(uri, 512) as file:
        for start, size in np.random.default_rng(2).integers(0, 60_000, (30, 2)).tolist():
            file.seek(start)
            expected.seek(start)
            assert file.read(size) == expected.read(size)
        file.seek(-10, io.SEEK_END)
        assert file.read() == content[-10:]


@pytest.mark.e2e
def test_a_short_read_requests_no_more_than_the_buffer(bucket: Bucket, proxy: FaultProxy):
    bucket.put("large", bytes(10**6))
    with open_object(parse_location(f"{bucket.url}/large"), 512) as file:
        file.seek(500_000)
        file.read(100)
    assert proxy.count_bytes("GET", "*/large") == 512


@pytest.mark.e2e
def test_a_missing_object_is_named(bucket: Bucket):
    with pytest.raises(ObjectMissingError, match=f"{bucket.url}/none"):
        open_object(parse_location(f"{bucket.url}/none"), 512)


def test_results_that_are_too_large_together_are_not_in_memory_together():
    calls = []
    size = ranges.AHEAD_BYTES // 2 + 1
    results = map_ahead(calls.append, [size] * 3 + [1] * 3, 4, lambda item: item)
    for expected in (1, 2):
        next(results)
        assert len(calls) == expected
    assert len(list(results)) == 4
