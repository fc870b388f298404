"""Hosts that train the same run on a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mirror_hosts import Host
from stores import Bucket


@pytest.fixture
def hosts(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Host]]:
    """Returns hosts that train the same run, with nothing in common but the store."""
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "here"))
    hosts = [Host(tmp_path / name, f"{bucket.url}/runs/first") for name in ("one", "two", "three")]
    yield hosts
    for host in hosts:
        for process in host.processes:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
