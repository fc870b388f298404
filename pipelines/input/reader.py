"""Rows of a split to encoded images, by random access into memory-mapped Arrow files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.errors import DataError
from pipelines.records import RECORD_SCHEMA, Box
from pipelines.shards.manifest import ShardFile, load_manifest

FIX = "copy the file again, or build the shard set again"


class ShardReader:
    """One split of a shard set. Opening maps the files and reads the labels; images are read on demand.

    Args:
        directory: The shard set.
        split: Which split.

    Attributes:
        manifest: The manifest of the shard set.
        rows: Number of examples.
        labels: int32 `[rows]`.

    Raises:
        DataError: The shard set or the split is not there, or a file of it is missing, cut short or not
            what the manifest says. Only what costs nothing is checked.
    """

    def __init__(self, directory: str | Path, split: str) -> None:
        self.manifest = load_manifest(directory)
        self.split = split
        shards = self.manifest.split(split).shards
        if self.manifest.format != "arrow":
            raise DataError("a shard set of format arrow", f"{directory}: format={self.manifest.format}", "build it with that format")
        self._chunks = [chunk for shard in shards for chunk in _open(Path(directory) / shard.file, shard)]
        sizes = [chunk.num_rows for chunk in self._chunks]
        self._ends = np.cumsum(sizes, dtype=np.int64)  # row number after the last of each chunk
        self.rows = int(sum(sizes))
        columns = [chunk.column("label").to_numpy() for chunk in self._chunks]
        self.labels: NDArray[np.int32] = np.concatenate([np.empty(0, np.int32), *columns])

    def images(self, rows: Sequence[int] | NDArray[np.int64]) -> list[bytes]:
        """The encoded images of some rows, in the order asked for."""
        return self._values("image", rows)

    def ids(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The identifiers of some rows: their paths in the source."""
        return self._values("id", rows)

    def evidence(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Box | None]:
        """The boxes `(ymin, xmin, ymax, xmax)` in [0, 1] of some rows, None where unknown."""
        return [None if box is None else (box[0], box[1], box[2], box[3]) for box in self._values("evidence", rows)]

    def _values(self, column: str, rows: Sequence[int] | NDArray[np.int64]) -> list[Any]:
        wanted = np.asarray(rows, np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.rows:
            bad = wanted[(wanted < 0) | (wanted >= self.rows)][0]
            raise DataError(f"a row of {self.split!r} from 0 to {self.rows - 1}", f"row={bad}", "ask for a row that is there")
        chunks = np.searchsorted(self._ends, wanted, side="right")
        columns = {chunk: self._chunks[chunk].column(column) for chunk in set(chunks.tolist())}
        starts = self._ends - [chunk.num_rows for chunk in self._chunks]
        within = wanted - starts[chunks]
        return [columns[chunk][place].as_py() for chunk, place in zip(chunks.tolist(), within.tolist(), strict=True)]


def _open(path: Path, shard: ShardFile) -> list[pa.RecordBatch]:
    """Maps one shard file into memory and holds it against the manifest."""
    if not path.is_file():
        raise DataError("every shard file of the manifest", f"{path} (missing)", FIX)
    size = path.stat().st_size
    if size != shard.bytes:
        raise DataError(f"a shard file of {shard.bytes} bytes", f"{path}: bytes={size}", FIX)
    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        chunks = [file.get_batch(index) for index in range(file.num_record_batches)]
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError("an Arrow IPC file", f"{path}: {error}", FIX) from None
    if not file.schema.equals(RECORD_SCHEMA):
        raise DataError(f"columns {', '.join(RECORD_SCHEMA.names)} of the record schema", f"{path}: {', '.join(file.schema.names)}", FIX)
    rows = sum(chunk.num_rows for chunk in chunks)
    if rows != shard.rows:
        raise DataError(f"a shard file of {shard.rows} rows", f"{path}: rows={rows}", FIX)
    return [chunk for chunk in chunks if chunk.num_rows]
