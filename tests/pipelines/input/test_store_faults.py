"""Rows read from a store behind faults are those on local disk, or one sentence names the object."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from store_faults import (
    FINAL_FAULTS,
    PASSING_FAULTS,
    REFUSALS,
    SHARDS,
    choose_small_cache,
    compute_digest,
    count_shard_bytes,
    read_until_refused,
    use_empty_cache,
    write_set,
)
from stores import SECRET_KEY, Bucket, FaultProxy, wait_until

from pipelines.remote.uri import Uri

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def local_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("sets") / "set")


@pytest.fixture
def remote_set(local_set: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Uri:
    """The same set in a bucket; the cache is empty, and pauses between retries are short."""
    bucket.upload_folder(local_set, "set")
    use_empty_cache(monkeypatch, tmp_path / "cache")
    return Uri("s3", bucket.name, "set")


@pytest.fixture(scope="module")
def expected(local_set: Path) -> str:
    return compute_digest(local_set)


@pytest.mark.parametrize("fault", PASSING_FAULTS)
def test_rows_are_those_on_local_disk(
    fault: str, remote_set: Uri, local_set: Path, proxy: FaultProxy, expected: str
) -> None:
    PASSING_FAULTS[fault](proxy)
    assert compute_digest(str(remote_set), choose_small_cache(local_set)) == expected
    assert proxy.latency or any(request.fault for request in proxy.requests)


def test_an_outage_in_the_middle_of_an_epoch_is_survived(
    remote_set: Uri, local_set: Path, proxy: FaultProxy, expected: str
) -> None:
    def interrupt(step: int) -> None:
        if step == 5:
            proxy.go_down()
            threading.Timer(1.5, proxy.come_up).start()

    assert compute_digest(str(remote_set), choose_small_cache(local_set), interrupt) == expected


def test_each_object_is_fetched_once_where_the_cache_holds_the_set(
    remote_set: Uri, local_set: Path, proxy: FaultProxy, expected: str
) -> None:
    assert compute_digest(str(remote_set)) == expected
    assert compute_digest(str(remote_set)) == expected  # a second run, from the cache of the first
    shards = "*/train-*.arrow"
    assert proxy.count_requests("GET", shards) == SHARDS
    assert proxy.count_bytes("GET", shards) == count_shard_bytes(local_set)


@pytest.mark.parametrize("fault", [*FINAL_FAULTS, *REFUSALS["s3"]])
def test_what_does_not_pass_is_one_sentence_that_names_the_object(
    fault: str, remote_set: Uri, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = read_until_refused(fault, proxy, remote_set, monkeypatch)
    assert SECRET_KEY not in message
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")])
