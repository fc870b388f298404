"""Tables of files that may exceed memory: collected, sorted and read in batches, on disk where large."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

CHUNK = 65536  # rows of a batch
MEMORY_BYTES = 128 * 2**20  # of a table, beyond which it is on disk
PARTITION_BITS = 8  # of a hash: each part of a sorted table fits in memory if the table has a billion rows


class FileTable(Protocol):
    """The part of `pyarrow.Table` that a table on disk has as well."""

    @property
    def schema(self) -> Any:
        """Names and types of the columns."""

    def __len__(self) -> int:
        """Returns the number of rows."""

    def slice(self, offset: int, length: int) -> pa.Table:
        """Returns some consecutive rows as a table in memory."""

    def to_batches(self, max_chunksize: int = CHUNK) -> Any:
        """Returns or yields all rows in batches."""


class DiskTable:
    """A table in a temporary file, which disappears with this process, however it ends.

    Args:
        file: File with batches of `CHUNK` rows, the last of which may have fewer.
        rows: Number of rows.
    """

    def __init__(self, file: Any, rows: int) -> None:
        self._file = file
        self._reader = pa.ipc.open_file(file)
        self._rows = rows
        self._newest: tuple[int, pa.RecordBatch] | None = None

    @property
    def schema(self) -> Any:
        """Names and types of the columns."""
        return self._reader.schema

    def __len__(self) -> int:
        return self._rows

    def slice(self, offset: int, length: int) -> pa.Table:
        """Returns some consecutive rows as a table in memory."""
        stop = min(offset + length, self._rows)
        batches = []
        for number in range(offset // CHUNK, -(-stop // CHUNK)):
            first = number * CHUNK
            start = max(offset - first, 0)
            batches.append(self._read_batch(number).slice(start, stop - first - start))
        return pa.Table.from_batches(batches, self.schema)

    def to_batches(self, max_chunksize: int = CHUNK) -> Iterator[pa.RecordBatch]:
        """Yields all rows in batches."""
        for number in range(self._reader.num_record_batches):
            batch = self._reader.get_batch(number)
            for start in range(0, len(batch), max_chunksize):
                yield batch.slice(start, max_chunksize)

    def __reduce__(self) -> Any:
        return pa.Table.from_batches, (list(self.to_batches()), self.schema)

    def _read_batch(self, number: int) -> pa.RecordBatch:
        """Returns a batch, which is kept for the next call: ranges are read one after the other."""
        if self._newest is None or self._newest[0] != number:
            self._newest = (number, self._reader.get_batch(number))
        return self._newest[1]


class TablePart:
    """Some consecutive rows of a table, under their numbers in that table, in a form that is sent to workers.

    Args:
        table: The whole table.
        start: Number of the first row.
        stop: Number after the last row.
    """

    def __init__(self, table: FileTable, start: int, stop: int) -> None:
        rows = table.slice(start, stop - start).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
        self._start = start
        self._rows = len(rows)
        self._content = sink.getvalue().to_pybytes()  # unlike a pickled slice, without the rest of the table

    @property
    def schema(self) -> Any:
        """Names and types of the columns."""
        return self._read().schema

    def __len__(self) -> int:
        return self._start + self._rows

    def slice(self, offset: int, length: int) -> pa.Table:
        """Returns some of the rows."""
        return self._read().slice(offset - self._start, length)

    def to_batches(self, max_chunksize: int = CHUNK) -> list[pa.RecordBatch]:
        """Returns the rows in batches."""
        return list(self._read().to_batches(max_chunksize=max_chunksize))

    def _read(self) -> pa.Table:
        return pa.ipc.open_stream(self._content).read_all()


class TableWriter:
    """Collects rows, in memory up to a limit and beyond that in a temporary file.

    Args:
        schema: Names and types of the columns.
        memory_bytes: Limit of the size in memory.
    """

    def __init__(self, schema: pa.Schema, memory_bytes: float = MEMORY_BYTES) -> None:
        self._schema = schema
        self._memory_bytes = memory_bytes
        self._pending: list[pa.RecordBatch] = []  # fewer than `CHUNK` rows
        self._pending_rows = 0
        self._chunks: list[pa.RecordBatch] = []
        self._bytes = 0
        self._rows = 0
        self._file: Any = None
        self._writer: Any = None

    def add(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Appends rows, which must have the columns of the schema."""
        batches = rows.to_batches() if isinstance(rows, pa.Table) else [rows]
        for batch in batches:
            while len(batch):
                taken = batch.slice(0, CHUNK - self._pending_rows)
                batch = batch.slice(len(taken))
                self._pending.append(taken)
                self._pending_rows += len(taken)
                if self._pending_rows == CHUNK:
                    self._store_pending()

    def finish(self) -> pa.Table | DiskTable:
        """Returns the table."""
        if self._pending_rows:
            self._store_pending()
        if self._writer is None:
            return pa.Table.from_batches(self._chunks, self._schema).combine_chunks()
        self._writer.close()
        self._file.seek(0)
        return DiskTable(self._file, self._rows)

    def _store_pending(self) -> None:
        table = pa.Table.from_batches(self._pending, self._schema).combine_chunks()
        (chunk,) = table.to_batches()
        self._pending = []
        self._pending_rows = 0
        self._rows += len(chunk)
        if self._writer is not None:
            self._writer.write_batch(chunk)
            return
        self._chunks.append(chunk)
        self._bytes += chunk.nbytes
        if self._bytes > self._memory_bytes:
            self._file = _open_temporary_file()
            self._writer = pa.ipc.new_file(self._file, self._schema)
            for stored in self._chunks:
                self._writer.write_batch(stored)
            self._chunks = []


class TableSorter:
    """Sorts rows by a hash, then by path, then in the order of their addition; beyond memory on disk.

    Args:
        schema: Names and types of the columns, among them `hash` (uint64) and `path`.
        memory_bytes: Size of the rows in memory from which they are moved to disk.
    """

    def __init__(self, schema: pa.Schema, memory_bytes: float = MEMORY_BYTES) -> None:
        self._schema = schema
        self._memory_bytes = memory_bytes
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._partitions: list[tuple[Any, Any]] = []  # files and their writers

    def add(self, batch: pa.RecordBatch) -> None:
        """Adds rows."""
        self._pending.append(batch)
        self._pending_bytes += batch.nbytes
        if self._pending_bytes > self._memory_bytes:
            self._store_pending()

    def iterate_batches(self) -> Iterator[pa.RecordBatch]:
        """Yields all rows in their order. Can be called once."""
        if not self._partitions:
            yield from _sort_rows(self._take_pending()).to_batches(max_chunksize=CHUNK)
            return
        self._store_pending()
        for number, (file, writer) in enumerate(self._partitions):
            writer.close()
            file.seek(0)
            rows = pa.ipc.open_stream(file).read_all()
            yield from _sort_rows(rows).to_batches(max_chunksize=CHUNK)
            file.close()
            self._partitions[number] = (None, None)  # the space is free before more is needed

    def _take_pending(self) -> pa.Table:
        table = pa.Table.from_batches(self._pending, self._schema)
        self._pending = []
        self._pending_bytes = 0
        return table

    def _store_pending(self) -> None:
        """Appends the rows in memory to the files of their parts, which follow each other in the order."""
        table = self._take_pending()
        if not self._partitions:
            for _ in range(2**PARTITION_BITS):
                file = _open_temporary_file()
                self._partitions.append((file, pa.ipc.new_stream(file, self._schema)))
        part_of_row = _read_hashes(table) >> np.uint64(64 - PARTITION_BITS)
        order = np.argsort(part_of_row, kind="stable")
        table = table.take(order).combine_chunks()
        stops = np.searchsorted(part_of_row[order], np.arange(2**PARTITION_BITS), side="right")
        start = 0
        for (_, writer), stop in zip(self._partitions, stops.tolist(), strict=True):
            if stop > start:
                writer.write_table(table.slice(start, stop - start))
            start = stop


def _open_temporary_file() -> Any:
    """Opens a file without a name, whose space is free as soon as it is closed."""
    return tempfile.TemporaryFile(prefix="glassbox-listing-")


def _read_hashes(table: pa.Table) -> NDArray[np.uint64]:
    hashes: NDArray[np.uint64] = table["hash"].to_numpy()
    return hashes


def _sort_rows(table: pa.Table) -> pa.Table:
    hashes = _read_hashes(table)
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    if (hashes[1:] == hashes[:-1]).any():  # files of the same path, or a rare coincidence
        keys = table.select(["hash", "path"]).append_column("row", pa.array(np.arange(len(table))))
        order = pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names])
    return table.take(order).combine_chunks()
