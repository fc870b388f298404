"""Tiny shard sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import shard_samples

from pipelines.records import Record

WriteShards = Callable[..., Path]


@pytest.fixture
def write_shards(tmp_path: Path) -> WriteShards:
    """Returns a function that writes records as split `train` and returns the directory."""

    def write(records: Sequence[Record], shard_rows: int = 3) -> Path:
        return shard_samples.write_shards(
            tmp_path / "shards", ("ant", "bee", "cat"), {"train": records}, shard_rows
        )

    return write
