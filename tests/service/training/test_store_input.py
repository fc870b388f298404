"""A training on a shard set in a store, behind faults, reaches the weights of one on local disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stores import Bucket, FaultProxy
from tiny_models import register_tiny_models
from training_samples import config_for, fit_run, noise_shards, read_checkpoint

from pipelines.errors import DataError
from service.config import RunConfig
from service.runs import Run

pytestmark = pytest.mark.e2e

WINDOW = {"image_size": [12, 12], "window": 2, "cache": "none"}


@pytest.fixture(scope="module", autouse=True)
def models() -> None:
    register_tiny_models()


@pytest.fixture(scope="module")
def local_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of noise on local disk."""
    return noise_shards(tmp_path_factory.mktemp("sets") / "set", rows=300, shard_rows=40)


@pytest.fixture(scope="module")
def reference(local_set: Path, tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """The last checkpoint of the training on local disk."""
    run = fit_run(tmp_path_factory.mktemp("runs") / "local", config_for(local_set, data=WINDOW, epochs=2))
    return read_last(run)


@pytest.fixture
def remote_config(
    local_set: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> RunConfig:
    """The configuration of the same training from a bucket, with a cache of less than the set."""
    bucket.upload_folder(local_set, "set")
    monkeypatch.setattr("pipelines.remote.retry.FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("GLASSBOX_STORE_TIMEOUT", "30")
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    total = sum(path.stat().st_size for path in local_set.rglob("*") if path.is_file())
    return config_for(f"{bucket.url}/set", data=WINDOW | {"cache_gb": 0.9 * total / 1e9}, epochs=2)


def read_last(run: Run) -> list[np.ndarray]:
    return read_checkpoint(run, sorted(path.name for path in run.checkpoints.iterdir())[-1])


def flip_all(proxy: FaultProxy) -> None:
    for index in range(8):
        proxy.inject("flip", key=f"*/train-{40 * index:05d}.arrow", after=700)


def interrupt_connections(proxy: FaultProxy) -> None:
    proxy.inject("reset", times=12, after=500)


def go_away(proxy: FaultProxy) -> None:
    def start_outage() -> None:
        proxy.go_down()
        threading.Timer(2.0, proxy.come_up).start()

    threading.Timer(1.0, start_outage).start()


FAULTS: dict[str, Callable[[FaultProxy], None]] = {
    "flipped bytes": flip_all,
    "resets": interrupt_connections,
    "an outage": go_away,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_are_those_of_a_training_on_local_disk(
    fault: str, remote_config: RunConfig, proxy: FaultProxy, reference: list[np.ndarray], tmp_path: Path
) -> None:
    FAULTS[fault](proxy)
    run = fit_run(tmp_path / "run", remote_config)
    arrays = read_last(run)
    assert len(arrays) == len(reference)
    for array, expected in zip(arrays, reference, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_an_object_replaced_during_training_is_named(
    remote_config: RunConfig, bucket: Bucket, tmp_path: Path
) -> None:
    for key in (key for key in bucket.list_keys("set") if "/train-" in key):
        content = bytearray(bucket.get(key))
        content[700] ^= 0xFF
        bucket.put(key, bytes(content))
    with pytest.raises(DataError, match=r"SHA-256 .*/set/train-\d+\.arrow"):
        fit_run(tmp_path / "run", remote_config)
