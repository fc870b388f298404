"""Small shard sets for tests, written without the builder."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.records import Record
from pipelines.shards.formats import write_shard
from pipelines.shards.manifest import VERSION, InlineSplit, Manifest, SplitManifest
from pipelines.shards.split_index import index_shard, write_split


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes uint8 [H, W], [H, W, 1] or [H, W, 3] without loss."""
    stream = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels).save(
        stream, "PNG"
    )
    return stream.getvalue()


def make_record(pixels: np.ndarray, label: int, name: str) -> Record:
    """A PNG record of uint8 [H, W], [H, W, 1] or [H, W, 3]."""
    height, width, channels = np.atleast_3d(pixels).shape
    return Record(encode_png(pixels), label, name, (height, width, channels))


def write_shards(
    directory: Path,
    classes: Sequence[str],
    splits: Mapping[str, Sequence[Record]],
    shard_rows: int = 1000,
    *,
    format: str = "arrow",
    encoding: str = "as-found",
    version: int = VERSION,
) -> Path:
    """Writes a shard set, `shard_rows` rows to a shard; version 2 lists the shards in the manifest."""
    directory.mkdir(parents=True)
    manifests = {}
    for split, records in splits.items():
        starts = range(0, len(records), shard_rows)
        shards = [
            write_shard(directory, f"{split}-{start:05d}.{format}", records[start : start + shard_rows])
            for start in starts
        ]
        counts = np.bincount([record.label for record in records], minlength=len(classes)).tolist()
        figures = {"class_counts": tuple(counts), "mean": (1.0,) * 3, "std": (1.0,) * 3}
        if version == 2:
            manifests[split] = InlineSplit(shards=tuple(shards), **figures)
            continue
        parts = [(shard, index_shard(directory, shard)) for shard in shards]
        manifests[split] = SplitManifest(**dict(write_split(directory, split, format, parts)), **figures)
    Manifest(
        version=version,
        format=format,
        encoding=encoding,
        store_size=None,
        source="folder:tiny",
        fingerprint="0",
        classes=tuple(classes),
        splits=manifests,
        rejected=0,
    ).save(directory)
    return directory
