"""`glassbox cache`: what the cache holds, and what may be removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.remote.disk import CacheFolder, open_cache
from pipelines.remote.schedule import CacheEntry
from pipelines.remote.uri import Uri
from service.cli import main

LOCATION = Uri("s3", "bucket", "photos")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CacheFolder:
    """A cache with one set of a file of 3 MB, a single file of 1 MB, and the copy of a run."""
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GLASSBOX_CACHE_GB", "2")
    cache = open_cache()
    entry = CacheEntry(f"{cache.add_set(LOCATION)}/file", "file", 3_000_000, "digest")
    fetch = cache.reserve(entry).fetch
    assert fetch is not None
    fetch.path.write_bytes(bytes(entry.bytes))
    cache.complete(fetch)
    for name in ("files/1/model.keras", "runs/first/model.keras"):
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(1_000_000))
    return cache


def test_info_prints_budget_sets_and_users(cache: CacheFolder, capsys: pytest.CaptureFixture[str]) -> None:
    user = cache.open_user(LOCATION)
    assert main(["cache", "info"]) == 0
    output = capsys.readouterr().out
    assert "0.003 GB of at most 2 GB (GLASSBOX_CACHE_GB)" in output
    assert "single files: 0.001 GB" in output
    assert f"{LOCATION}  1      0.003 GB  process" in output
    user.close()


@pytest.mark.parametrize("options", [["--all"], [str(LOCATION)]])
def test_a_set_in_use_is_not_removed(
    cache: CacheFolder, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    user = cache.open_user(LOCATION)
    assert main(["cache", "clear", *options]) == 2
    assert f"{LOCATION} is used by process" in capsys.readouterr().err
    assert cache.list_sets()[0].bytes == 3_000_000
    user.close()
    assert main(["cache", "clear", *options]) == 0
    assert cache.list_sets() == []


def test_copies_of_runs_are_never_removed(
    cache: CacheFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "clear", str(LOCATION)]) == 0
    assert "removed 0.003 GB" in capsys.readouterr().out
    assert main(["cache", "clear", "--all"]) == 0
    assert "removed 0.001 GB" in capsys.readouterr().out
    remaining = [path.relative_to(tmp_path / "cache") for path in tmp_path.rglob("*.keras")]
    assert remaining == [Path("runs/first/model.keras")]


@pytest.mark.parametrize("options", [[], ["--all", str(LOCATION)], ["s3://bucket/other"]])
def test_what_to_remove_must_be_named(
    cache: CacheFolder, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "clear", *options]) == 2
    assert "Fix: name" in capsys.readouterr().err
    assert len(cache.list_sets()) == 1
