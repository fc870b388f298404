"""Rows read from a store behind faults are those on local disk, or one sentence names the object."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from shard_samples import make_record, write_shards
from stores import SECRET_KEY, Bucket, FaultProxy, wait_until

from pipelines.errors import DataError
from pipelines.input.order import EpochOrder, OrderSpec
from pipelines.input.passes import Pass, PassReader
from pipelines.input.reader import ShardReader

pytestmark = pytest.mark.e2e

SHARDS = 12
ROWS = 8 * SHARDS
EPOCHS = 2


@pytest.fixture(scope="module")
def local_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of noise on local disk, 12 shards of about 14 kB."""
    draw = np.random.default_rng(0)
    records = [
        make_record(draw.integers(0, 256, (24, 24, 3), np.uint8), row % 2, f"train/{row}")
        for row in range(ROWS)
    ]
    folder = tmp_path_factory.mktemp("sets") / "set"
    return write_shards(folder, ("a", "b"), {"train": records}, shard_rows=8)


@pytest.fixture
def remote_set(local_set: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The same set in a bucket; the cache is empty, and pauses between retries are short."""
    bucket.upload_folder(local_set, "set")
    monkeypatch.setattr("pipelines.remote.retry.FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("GLASSBOX_STORE_TIMEOUT", "30")
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GLASSBOX_CACHE_GB", raising=False)
    return f"{bucket.url}/set"


def compute_digest(
    location: str | Path, cache_gb: float | None = None, interrupt: Callable[[int], None] | None = None
) -> str:
    """Reads two epochs in windows of three shards; returns the digest of all rows and images in their order.

    Args:
        location: The shard set.
        cache_gb: Budget of the cache.
        interrupt: Called before every step with the number of steps so far.
    """
    reader = ShardReader(location, "train", cache_gb)
    order = OrderSpec((reader.shard_rows,), global_batch=10, seed=3, window=3)
    steps = Pass(order, epoch=0, epochs=EPOCHS, start_step=0, stop_step=EpochOrder(order, 0).steps)
    current = PassReader(reader, steps)
    digest = hashlib.sha256()
    count = 0
    for epoch, numbers in steps.iterate_steps():
        epoch_order = EpochOrder(order, epoch)
        for step in numbers:
            if interrupt is not None:
                interrupt(count)
            count += 1
            rows = epoch_order.find_rows(range(step, step + 1))[0]
            rows = rows[rows >= 0]
            digest.update(rows.tobytes())
            for image in current.reader.read_images(rows):
                digest.update(image)
            current.finish(epoch, step)
    current.close()
    return digest.hexdigest()


@pytest.fixture(scope="module")
def expected(local_set: Path) -> str:
    return compute_digest(local_set)


def count_shard_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("train-*.arrow"))


def inject_per_shard(proxy: FaultProxy, kind: str, **options: int) -> None:
    for index in range(SHARDS):
        proxy.inject(kind, key=f"*/train-{8 * index:05d}.arrow", **options)


def add_latency(proxy: FaultProxy) -> None:
    proxy.latency = 0.05


PASSING_FAULTS: dict[str, Callable[[FaultProxy], object]] = {
    "50 ms of latency": add_latency,
    "errors for every object": lambda proxy: [
        inject_per_shard(proxy, "status", status=status) for status in (503, 429, 500)
    ],
    "503 before anything is known": lambda proxy: proxy.inject("status", method="*", times=7),
    "a reset before every response": lambda proxy: inject_per_shard(proxy, "reset", after=0, times=2),
    "a reset in every body": lambda proxy: inject_per_shard(proxy, "reset", after=5_000, times=2),
    "every body cut off": lambda proxy: inject_per_shard(proxy, "truncate", after=5_000),
    "every body shortened": lambda proxy: inject_per_shard(proxy, "shorten", after=5_000),
    "a flipped byte in every body": lambda proxy: inject_per_shard(proxy, "flip", after=9_000),
}


@pytest.mark.parametrize("fault", PASSING_FAULTS)
def test_rows_are_those_on_local_disk(
    fault: str, remote_set: str, local_set: Path, proxy: FaultProxy, expected: str
) -> None:
    PASSING_FAULTS[fault](proxy)
    cache_gb = count_shard_bytes(local_set) * 0.6 / 1e9
    assert compute_digest(remote_set, cache_gb) == expected
    assert proxy.latency or any(request.fault for request in proxy.requests)


def test_an_outage_in_the_middle_of_an_epoch_is_survived(
    remote_set: str, local_set: Path, proxy: FaultProxy, expected: str
) -> None:
    def interrupt(step: int) -> None:
        if step == 5:
            proxy.go_down()
            threading.Timer(1.5, proxy.come_up).start()

    assert compute_digest(remote_set, count_shard_bytes(local_set) * 0.6 / 1e9, interrupt) == expected


def test_each_object_is_fetched_once_where_the_cache_holds_the_set(
    remote_set: str, local_set: Path, proxy: FaultProxy, expected: str
) -> None:
    assert compute_digest(remote_set) == expected
    assert compute_digest(remote_set) == expected  # a second run, from the cache of the first
    shards = "*/train-*.arrow"
    assert proxy.count_requests("GET", shards) == SHARDS
    assert proxy.count_bytes("GET", shards) == count_shard_bytes(local_set)


def damage_forever(proxy: FaultProxy, bucket: Bucket) -> None:
    proxy.inject("flip", key="*/train-00040.arrow", after=9_000, times=None)


def replace_object(proxy: FaultProxy, bucket: Bucket) -> None:
    key = "set/train-00040.arrow"
    content = bytearray(bucket.get(key))
    content[9_000] ^= 0xFF
    bucket.put(key, bytes(content))


def delete_object(proxy: FaultProxy, bucket: Bucket) -> None:
    bucket.delete("set/train-00040.arrow")


def expire_credentials(proxy: FaultProxy, bucket: Bucket) -> None:
    proxy.inject("status", method="*", times=None, status=400, code="ExpiredToken", skip=4)


def deny_access(proxy: FaultProxy, bucket: Bucket) -> None:
    proxy.inject("status", method="*", times=None, status=403, code="AccessDenied", skip=4)


def skew_clock(proxy: FaultProxy, bucket: Bucket) -> None:
    proxy.inject("status", method="*", times=None, status=403, code="RequestTimeTooSkewed", skip=4)


def stay_away(proxy: FaultProxy, bucket: Bucket) -> None:
    proxy.inject("reset", key="*.arrow", times=None, skip=4)


FINAL_FAULTS: dict[str, tuple[Callable[[FaultProxy, Bucket], None], str]] = {
    "an object damaged every time": (damage_forever, r"/set/train-00040\.arrow"),
    "an object replaced": (replace_object, r"/set/train-00040\.arrow"),
    "an object deleted": (delete_object, r"/set/train-00040\.arrow"),
    "expired credentials": (expire_credentials, r"credentials that are still valid for s3://.*/set/"),
    "access denied": (deny_access, r"credentials that may use s3://.*/set/"),
    "clock skew": (skew_clock, r"a clock that agrees with the store's for s3://.*/set/"),
    "a store that stays away": (stay_away, r"s3://.*/set/train\S*\.arrow"),
}


@pytest.mark.parametrize("fault", FINAL_FAULTS)
def test_what_does_not_pass_is_one_sentence_that_names_the_object(
    fault: str, remote_set: str, bucket: Bucket, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSBOX_STORE_TIMEOUT", "1")
    cause, pattern = FINAL_FAULTS[fault]
    cause(proxy, bucket)
    with pytest.raises(DataError, match=pattern) as caught:
        compute_digest(remote_set)
    message = str(caught.value)
    assert re.fullmatch(r"Expected .* Received: .* Fix: .*\.", message), message
    assert "\n" not in message
    assert SECRET_KEY not in message
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")])
