"""Tiny images and shard files, written without the builder."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines.records import RECORD_SCHEMA, Example
from pipelines.shards.manifest import ShardFile


def png(pixels: np.ndarray) -> bytes:
    """Encodes uint8 [H, W], [H, W, 1] or [H, W, 3] without loss."""
    stream = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels).save(stream, "PNG")
    return stream.getvalue()


def solid(value: int, size: tuple[int, int] = (2, 3)) -> bytes:
    """A grey PNG of one value."""
    return png(np.full(size, value, np.uint8))


def solids(rows: int) -> list[Example]:
    """Row i is an image of the value 10 * i, of class i % 3."""
    return [Example(solid(10 * row), row % 3, f"folder/{row}.png") for row in range(rows)]


def write_shard(path: Path, examples: Sequence[Example], rows_per_chunk: int = 2) -> ShardFile:
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, RECORD_SCHEMA) as writer:
        for start in range(0, len(examples), rows_per_chunk):
            part = examples[start : start + rows_per_chunk]
            columns = [[getattr(example, name) for example in part] for name in RECORD_SCHEMA.names]
            arrays = [pa.array(column, type=field.type) for column, field in zip(columns, RECORD_SCHEMA, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=RECORD_SCHEMA))
    content = path.read_bytes()
    return ShardFile(file=path.name, rows=len(examples), bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
