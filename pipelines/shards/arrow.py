"""One shard as an Arrow IPC file: uncompressed, so that it can be mapped into memory and read at any row."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.records import RECORD_SCHEMA, Example

BATCH_BYTES = 256 * 2**20  # of images; Arrow's limit is 2 GiB, the memory of a worker is less


def write_shard(path: Path, examples: Iterable[Example]) -> int:
    """Writes examples to a file; the same examples give the same bytes.

    A shard is one record batch, or several where its images take more than `BATCH_BYTES`.

    Args:
        path: The file to make.
        examples: The rows, consumed as they come.

    Returns:
        Number of rows.
    """
    rows, size = 0, 0
    waiting: list[Example] = []
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, RECORD_SCHEMA) as writer:
        for example in examples:
            if waiting and size + len(example.image) > BATCH_BYTES:
                writer.write_batch(_batch(waiting))
                waiting, size = [], 0
            waiting.append(example)
            size += len(example.image)
            rows += 1
        if waiting:
            writer.write_batch(_batch(waiting))
    return rows


def _batch(examples: list[Example]) -> pa.RecordBatch:
    """A record batch `[len(examples)]` in the record schema."""
    image, label, identifier, evidence = (field.type for field in RECORD_SCHEMA)
    boxes = np.array([example.evidence or (0.0,) * 4 for example in examples], np.float32).ravel()  # defined bytes under a null too
    missing = pa.array([example.evidence is None for example in examples])
    columns = [
        pa.array([example.image for example in examples], image),
        pa.array([example.label for example in examples], label),
        pa.array([example.id for example in examples], identifier),
        pa.FixedSizeListArray.from_arrays(pa.array(boxes), type=evidence, mask=missing),
    ]
    return pa.record_batch(columns, schema=RECORD_SCHEMA)
