"""Tiny shard sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_shards import write_shard

from pipelines.records import Example
from pipelines.shards.manifest import Manifest, SplitManifest

WriteShards = Callable[..., Path]


@pytest.fixture
def write_shards(tmp_path: Path) -> WriteShards:
    """Writes examples as split `train`, some rows to a shard, and returns the directory."""

    def write(examples: Sequence[Example], shard_rows: int = 3) -> Path:
        directory = tmp_path / "shards"
        directory.mkdir()
        starts = range(0, len(examples), shard_rows)
        shards = [write_shard(directory / f"train-{start:03}.arrow", examples[start : start + shard_rows]) for start in starts]
        counts = np.bincount([example.label for example in examples], minlength=3).tolist()
        split = SplitManifest(shards=tuple(shards), class_counts=tuple(counts), mean=(1.0,) * 3, std=(1.0,) * 3)
        Manifest(
            version=1,
            format="arrow",
            encoding="png",
            store_size=None,
            source="folder:photos",
            fingerprint="0",
            classes=("ant", "bee", "cat"),
            splits={"train": split},
            rejected=0,
        ).save(directory)
        return directory

    return write
