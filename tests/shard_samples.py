"""Small shard sets for tests, written without the builder."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.records import Record
from pipelines.shards.arrow import write_shard
from pipelines.shards.manifest import VERSION, Manifest, ShardFile, SplitManifest
from pipelines.storage import sha256


def png(pixels: np.ndarray) -> bytes:
    """Encodes uint8 [H, W], [H, W, 1] or [H, W, 3] without loss."""
    stream = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels).save(stream, "PNG")
    return stream.getvalue()


def record(pixels: np.ndarray, label: int, name: str) -> Record:
    """A PNG record of uint8 [H, W], [H, W, 1] or [H, W, 3]."""
    height, width, channels = np.atleast_3d(pixels).shape
    return Record(png(pixels), label, name, (height, width, channels))


def write_shards(directory: Path, classes: Sequence[str], splits: Mapping[str, Sequence[Record]], shard_rows: int = 1000) -> Path:
    """Writes a shard set of format arrow, `shard_rows` rows to a shard."""
    directory.mkdir(parents=True)
    manifests = {}
    for split, records in splits.items():
        shards = []
        for start in range(0, len(records), shard_rows):
            path = directory / f"{split}-{start:05d}.arrow"
            rows = write_shard(path, records[start : start + shard_rows])
            shards.append(ShardFile(file=path.name, rows=rows, bytes=path.stat().st_size, sha256=sha256(path)))
        counts = np.bincount([record.label for record in records], minlength=len(classes)).tolist()
        manifests[split] = SplitManifest(shards=tuple(shards), class_counts=tuple(counts), mean=(1.0,) * 3, std=(1.0,) * 3)
    Manifest(
        version=VERSION,
        format="arrow",
        encoding="as-found",
        store_size=None,
        source="folder:tiny",
        fingerprint="0",
        classes=tuple(classes),
        splits=manifests,
        rejected=0,
    ).save(directory)
    return directory
