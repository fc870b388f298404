"""Trainings that share the shard cache of a host: what they claim together must fit."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.remote import claims
from pipelines.remote.claims import CacheClaim, claim_cache
from pipelines.remote.disk import open_cache
from pipelines.remote.needs import Need

GB = 10**9
MB = 10**6
HOLD = """
import json, sys
from pipelines.remote.claims import claim_cache
from pipelines.remote.needs import Need
claim = claim_cache({"s3://b/set": Need(int(sys.argv[1]), 0, 10**9)}, 0.1, "tests", "other")
print("claimed", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(claims, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(claims, "POLL_SECONDS", 0.01)


def claim(
    size: int, group: str, location: str = "s3://b/set", total: int = GB, budget: int = 100
) -> CacheClaim:
    """Claims some megabytes of a cache of `budget` megabytes."""
    return claim_cache({location: Need(size * MB, 0, total)}, budget / 1000, "tests", group)


def start_other(size: int) -> subprocess.Popen[str]:
    """Starts another process that claims some megabytes of a cache of 100 MB, and waits until it has."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(size * MB)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    return process


def test_a_second_training_that_does_not_fit_is_refused_until_the_first_one_ends() -> None:
    other = start_other(60)
    try:
        with pytest.raises(ConfigError) as refusal:
            claim(41, "mine")
        assert refusal.value.expected == "a shard cache of at least 0.101 GB for all trainings on this host"
        assert "needs 0.041 GB, next to process" in refusal.value.received
        assert f"process {other.pid} " in refusal.value.received
        assert "which needs 0.06 GB" in refusal.value.received
        shared = claim(40, "mine")
        assert f"shared with process {other.pid} " in shared.sharing
        shared.close()
    finally:
        other.kill()
        other.communicate()
    assert claim(41, "mine").sharing == ""


def test_workers_of_a_training_that_read_the_same_shards_count_once() -> None:
    first = claim(60, "run")
    assert claim(60, "run").sharing == ""
    with pytest.raises(ConfigError, match=r"at least 0\.12 GB"):
        claim(60, "run#1")
    assert first.sharing == ""


def test_trainings_on_the_same_set_need_no_more_than_the_set() -> None:
    first = claim(90, "one", total=90 * MB)
    assert "shared with" in claim(90, "two", total=90 * MB).sharing
    with pytest.raises(ConfigError, match=r"at least 0\.18 GB"):
        claim(90, "three", "s3://b/other", total=90 * MB)
    assert first.sharing == ""


def test_the_smallest_budget_of_all_trainings_counts() -> None:
    first = claim(60, "one", budget=100)
    with pytest.raises(ConfigError, match=r"Received: budget=0\.1 GB"):
        claim(60, "two", "s3://b/other", budget=1000)
    assert first.sharing == ""


def test_a_claim_ends_with_its_last_reference_and_a_refused_one_leaves_nothing() -> None:
    first = claim(60, "one")
    with pytest.raises(ConfigError):
        claim(60, "two")
    assert len(list((open_cache().folder / "users").glob("*.lock"))) == 1
    del first
    claim(100, "two").close()
    assert list((open_cache().folder / "users").iterdir()) == []


def test_a_training_waits_for_another_one_that_is_about_to_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(claims, "WAIT_SECONDS", 60.0)
    first = claim(60, "one")
    caplog.set_level(logging.WARNING)
    timer = threading.Timer(0.2, first.close)
    timer.start()
    assert claim(60, "two").sharing == ""
    timer.join()
    (record,) = caplog.records
    assert "waiting for space in the shard cache, next to process" in record.message


def test_a_claim_above_the_budget_is_refused_at_once_and_local_sets_claim_nothing() -> None:
    with pytest.raises(ConfigError, match=r"at least 0\.101 GB: tests"):
        claim(101, "one")
    claim_cache({}, 1e-9, "tests", "one").close()


def test_a_claim_is_no_user_of_files(tmp_path: Path) -> None:
    first = claim(60, "one")
    (table,) = (open_cache().folder / "users").glob("*.json")
    assert json.loads(table.read_text())["in_use"] == []
    with pytest.raises(ConfigError, match="is used by process"):
        open_cache().clear(None)
    first.close()
