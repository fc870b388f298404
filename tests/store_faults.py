"""Faults between the reader of a shard set and a store, and what a pass through them reads."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from shard_samples import make_record, write_shards
from stores import FaultProxy

from pipelines.errors import DataError
from pipelines.input.order import EpochOrder, OrderSpec
from pipelines.input.passes import Pass, PassReader
from pipelines.input.reader import ShardReader
from pipelines.remote import store
from pipelines.remote.uri import Uri

SHARDS = 12
ROWS = 8 * SHARDS
EPOCHS = 2
VICTIM = "train-00040.arrow"  # a shard in the middle of the set


def write_set(folder: Path) -> Path:
    """Writes a shard set of noise, 12 shards of about 14 kB."""
    draw = np.random.default_rng(0)
    records = [
        make_record(draw.integers(0, 256, (24, 24, 3), np.uint8), row % 2, f"train/{row}")
        for row in range(ROWS)
    ]
    return write_shards(folder, ("a", "b"), {"train": records}, shard_rows=8)


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


def count_shard_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("train-*.arrow"))


def choose_small_cache(folder: Path) -> float:
    """Returns a budget of the cache, in GB, that holds 0.6 of a shard set."""
    return count_shard_bytes(folder) * 0.6 / 1e9


def use_empty_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Gives the client an empty cache, patience, and short pauses between retries."""
    monkeypatch.setattr("pipelines.remote.retry.FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("GLASSBOX_STORE_TIMEOUT", "30")
    monkeypatch.setenv("GLASSBOX_CACHE", str(folder))
    monkeypatch.delenv("GLASSBOX_CACHE_GB", raising=False)


def _inject_per_shard(proxy: FaultProxy, kind: str, **options: int) -> None:
    for index in range(SHARDS):
        proxy.inject(kind, key=f"*/train-{8 * index:05d}.arrow", **options)


def _add_latency(proxy: FaultProxy) -> None:
    proxy.latency = 0.05


# Faults after which the rows are those on local disk
PASSING_FAULTS: dict[str, Callable[[FaultProxy], object]] = {
    "50 ms of latency": _add_latency,
    "errors for every object": lambda proxy: [
        _inject_per_shard(proxy, "status", status=status) for status in (503, 429, 500)
    ],
    "503 before anything is known": lambda proxy: proxy.inject("status", method="*", times=7),
    "a reset before every response": lambda proxy: _inject_per_shard(proxy, "reset", after=0, times=2),
    "a reset in every body": lambda proxy: _inject_per_shard(proxy, "reset", after=5_000, times=2),
    "every body cut off": lambda proxy: _inject_per_shard(proxy, "truncate", after=5_000),
    "every body shortened": lambda proxy: _inject_per_shard(proxy, "shorten", after=5_000),
    "a flipped byte in every body": lambda proxy: _inject_per_shard(proxy, "flip", after=9_000),
}


def _damage_forever(proxy: FaultProxy, location: Uri) -> None:
    proxy.inject("flip", key=f"*/{VICTIM}", after=9_000, times=None)


def _replace_object(proxy: FaultProxy, location: Uri) -> None:
    content = bytearray(store.read_bytes(location / VICTIM))
    content[9_000] ^= 0xFF
    store.write_bytes(location / VICTIM, bytes(content))


def _delete_object(proxy: FaultProxy, location: Uri) -> None:
    store.delete(location / VICTIM)


def _stay_away(proxy: FaultProxy, location: Uri) -> None:
    proxy.inject("reset", key="*.arrow", times=None, skip=4)


# Faults of objects and connections that end a pass, and what its error names
FINAL_FAULTS: dict[str, tuple[Callable[[FaultProxy, Uri], None], str]] = {
    "an object damaged every time": (_damage_forever, r"/set/train-00040\.arrow"),
    "an object replaced": (_replace_object, r"/set/train-00040\.arrow"),
    "an object deleted": (_delete_object, r"/set/train-00040\.arrow"),
    "a store that stays away": (_stay_away, r"://.*/set/train\S*\.arrow"),
}

# Refusals by the scheme of the store: status, code in the body, and how the error begins
REFUSALS: dict[str, dict[str, tuple[int, str, str]]] = {
    "s3": {
        "expired credentials": (400, "ExpiredToken", "credentials that are still valid for"),
        "access denied": (403, "AccessDenied", "credentials that may use"),
        "clock skew": (403, "RequestTimeTooSkewed", "a clock that agrees with the store's for"),
    },
    "gs": {
        "expired credentials": (401, "AuthenticationRequired", "credentials that may use"),
        "access denied": (403, "AccessDenied", "credentials that may use"),
        "clock skew": (403, "RequestTimeTooSkewed", "a clock that agrees with the store's for"),
    },
    "az": {
        "expired credentials": (403, "AuthenticationFailed", "credentials that the store accepts for"),
        "access denied": (403, "AuthorizationPermissionMismatch", "credentials that may use"),
        "clock skew": (403, "RequestTimeTooSkewed", "a clock that agrees with the store's for"),
    },
}


def read_until_refused(fault: str, proxy: FaultProxy, location: Uri, monkeypatch: pytest.MonkeyPatch) -> str:
    """Causes a fault of `FINAL_FAULTS`, or a refusal of all requests but the first four, and reads a set.

    Returns:
        The error that ends the pass, which is one sentence for each of its three parts and names the object.
    """
    monkeypatch.setenv("GLASSBOX_STORE_TIMEOUT", "1")
    pattern = _cause(fault, proxy, location)
    with pytest.raises(DataError, match=pattern) as caught:
        compute_digest(str(location))
    message = str(caught.value)
    assert re.fullmatch(r"Expected .* Received: .* Fix: .*\.", message), message
    assert "\n" not in message
    return message


def _cause(fault: str, proxy: FaultProxy, location: Uri) -> str:
    """Causes a fault or a refusal; returns a pattern for the error."""
    if fault in FINAL_FAULTS:
        inject, pattern = FINAL_FAULTS[fault]
        inject(proxy, location)
        return pattern
    status, code, sentence = REFUSALS[location.scheme][fault]
    proxy.inject("status", method="*", times=None, status=status, code=code, skip=4)
    return rf"{sentence} {location.scheme}://.*/set/"
