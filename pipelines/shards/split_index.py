"""The sidecars of a split: a table with one line per shard, and an index with one line per row.

    SPLIT.shards.arrow    number, rows, size and digest of every shard; where its rows are in the index
    SPLIT.rows.arrow      label, offset, size, checksum and shape of every row; one record batch per shard

Both are Arrow IPC files. A record batch of the index is a contiguous range of the file, which readers fetch
by position and compare with its digest in the table, so that opening a set touches neither shards nor index.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from pipelines.errors import DataError
from pipelines.open_file import DAMAGE_FIX
from pipelines.records import RECORD_SCHEMA
from pipelines.shards.arrow import (
    RowColumns,
    build_number_column,
    check_ranges,
    read_column,
    report_damage,
)
from pipelines.shards.files import LocalFiles, ShardFiles
from pipelines.shards.formats import flush_file, get_index_name, read_columns
from pipelines.shards.manifest import InlineSplit, Manifest, ShardFile, SplitManifest, StoredFile
from pipelines.spec import Spec
from pipelines.storage import replace_file

ROW_SCHEMA = pa.schema(
    [
        RECORD_SCHEMA.field("label"),
        pa.field("offset", pa.int64(), nullable=False),  # of the image in the file of the shard
        pa.field("bytes", pa.int32(), nullable=False),
        RECORD_SCHEMA.field("checksum"),
        RECORD_SCHEMA.field("shape"),
    ]
)

TABLE_FIELDS = (
    pa.field("number", pa.int32(), nullable=False),  # in the name of the file
    pa.field("rows", pa.int32(), nullable=False),
    pa.field("bytes", pa.int64(), nullable=False),
    pa.field("sha256", pa.binary(32), nullable=False),
    pa.field("index_offset", pa.int64(), nullable=False),  # of the record batch in the index
    pa.field("index_bytes", pa.int32(), nullable=False),
    pa.field("index_digest", pa.uint64(), nullable=False),  # XXH3-64 of these bytes
)
# The index file next to a TFRecord file, which has the identifiers and bounding boxes
SIDECAR_FIELDS = (
    pa.field("sidecar_bytes", pa.int64(), nullable=False),
    pa.field("sidecar_sha256", pa.binary(32), nullable=False),
)
TABLE_SCHEMAS = {
    "arrow": pa.schema(TABLE_FIELDS),
    "tfrecord": pa.schema([*TABLE_FIELDS, *SIDECAR_FIELDS]),
}


class SplitFiles(Spec):
    """The sidecars of a split, and what they add up to: fields of a `SplitManifest`.

    Attributes:
        rows: Number of examples in the split.
        shard_count: Number of shards with at least one row.
        bytes: Size of all files of the shards.
        file_pattern: Names of the shard files, with the number of the shard as `{number:05d}`.
        table: Sidecar with one line per shard.
        index: Sidecar with one line per row.
    """

    rows: int
    shard_count: int
    bytes: int
    file_pattern: str
    table: StoredFile
    index: StoredFile


def index_shard(directory: Path, shard: ShardFile) -> bytes:
    """Reads from a shard that was just written what the index says about its rows.

    Args:
        directory: Directory of the shard.
        shard: Result of `pipelines.shards.formats.write_shard`.

    Returns:
        Part of the index for `write_split`; empty for a shard without rows.
    """
    if not shard.rows:
        return b""
    return serialize_rows(read_columns(LocalFiles(directory), shard))


def serialize_rows(columns: RowColumns) -> bytes:
    """Returns the part of the index that describes the rows of one shard; equal rows give equal bytes."""
    shape_type = ROW_SCHEMA.field("shape").type
    shapes = build_number_column(columns.shapes, np.int32)
    arrays = [
        build_number_column(columns.labels, np.int32),
        build_number_column(columns.starts, np.int64),
        build_number_column(columns.sizes, np.int32),
        build_number_column(columns.checksums, np.uint64),
        pa.Array.from_buffers(shape_type, columns.rows, [None], children=[shapes]),
    ]
    return pa.record_batch(arrays, schema=ROW_SCHEMA).serialize().to_pybytes()  # type: ignore[no-any-return]


def parse_rows(part: bytes) -> RowColumns:
    """Reads what `serialize_rows` returned.

    Raises:
        ValueError: It is something else.
    """
    batches = [pa.ipc.read_record_batch(pa.py_buffer(part), ROW_SCHEMA)]
    return RowColumns(
        labels=read_column(batches, "label", np.int32),
        starts=read_column(batches, "offset", np.int64),
        sizes=read_column(batches, "bytes", np.int32),
        checksums=read_column(batches, "checksum", np.uint64),
        shapes=read_column(batches, "shape", np.int32, 3).reshape(-1, 3),  # [n * 3] -> [n, 3]
    )


def write_split(
    directory: Path, split: str, file_format: str, shards: Iterable[tuple[ShardFile, bytes]]
) -> SplitFiles:
    """Writes the sidecars of a split, with few shards at a time in memory.

    Args:
        directory: Existing directory to write to.
        split: Name of the split.
        file_format: Format of the shards, `arrow` or `tfrecord`.
        shards: Every shard in row order, with its part of the index from `index_shard`; shards without
            rows are left out.

    Raises:
        OSError: A file cannot be written.
        ValueError: The names of the shards do not follow one pattern.
    """
    table_path = directory / f"{split}.shards.arrow"
    index_path = directory / f"{split}.rows.arrow"
    with (
        replace_file(table_path, durable=False) as temporary_table,
        replace_file(index_path, durable=False) as temporary_index,
    ):
        with _SplitWriter(temporary_table, temporary_index, split, file_format) as writer:
            for shard, part in shards:
                if shard.rows:
                    writer.add(shard, part)
        table = flush_file(temporary_table, table_path.name)
        index = flush_file(temporary_index, index_path.name)
    return SplitFiles(
        rows=writer.rows,
        shard_count=writer.shard_count,
        bytes=writer.bytes,
        file_pattern=writer.file_pattern,
        table=table,
        index=index,
    )


class _SplitWriter:
    """Writes both sidecars of a split shard by shard.

    Args:
        table: Table of shards to create.
        index: Index to create.
        split: Name of the split.
        file_format: Format of the shards.
    """

    def __init__(self, table: Path, index: Path, split: str, file_format: str) -> None:
        self.rows = 0
        self.shard_count = 0
        self.bytes = 0
        self.file_pattern = f"{split}-{{number:05d}}.{file_format}"
        self._names = re.compile(rf"{re.escape(split)}-(\d+)([^/]*)")
        self._split = split
        self._schema = TABLE_SCHEMAS[file_format]
        # Raw values of every column: 64 bytes a shard
        self._columns = [bytearray() for _ in self._schema]
        self._table_path = table
        self._stack = ExitStack()
        self._index_stream = self._stack.enter_context(pa.OSFile(str(index), "wb"))
        self._index = self._stack.enter_context(pa.ipc.new_file(self._index_stream, ROW_SCHEMA))

    def __enter__(self) -> _SplitWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        with self._stack:
            if kind is None:
                self._write_table()

    def add(self, shard: ShardFile, part: bytes) -> None:
        """Adds one shard and its part of the index."""
        number = self._parse_number(shard.file)
        self._index.write_batch(pa.ipc.read_record_batch(pa.py_buffer(part), ROW_SCHEMA))
        offset = self._index_stream.tell() - len(part)
        digest = bytes.fromhex(shard.sha256)
        line = [number, shard.rows, shard.bytes, digest, offset, len(part), xxhash.xxh3_64_intdigest(part)]
        if shard.index is not None:
            line += [shard.index.bytes, bytes.fromhex(shard.index.sha256)]
        for field, column, value in zip(self._schema, self._columns, line, strict=True):
            is_digest = isinstance(value, bytes)
            column += value if is_digest else value.to_bytes(field.type.bit_width // 8, sys.byteorder)
        self.rows += shard.rows
        self.shard_count += 1
        self.bytes += sum(file.bytes for file in shard.files)

    def _parse_number(self, file: str) -> int:
        """Returns the number in the name of a shard file; the first one determines the pattern."""
        match = self._names.fullmatch(file)
        if match is None:
            raise ValueError(f"{file} is not the name of a shard of {self._split}")
        if not self.shard_count:
            self.file_pattern = f"{self._split}-{{number:05d}}{match[2]}"
        number = int(match[1])
        if self.file_pattern.format(number=number) != file:
            raise ValueError(f"{file} does not follow the pattern {self.file_pattern}")
        return number

    def _write_table(self) -> None:
        """Writes the table of shards as one record batch, whose columns readers use in place."""
        columns = [
            pa.Array.from_buffers(field.type, self.shard_count, [None, pa.py_buffer(column)])
            for field, column in zip(self._schema, self._columns, strict=True)
        ]
        with (
            pa.OSFile(str(self._table_path), "wb") as stream,
            pa.ipc.new_file(stream, self._schema) as table,
        ):
            table.write_batch(pa.record_batch(columns, schema=self._schema))


class ShardTable(Protocol):
    """The shards of a split, and the columns of their rows.

    Attributes:
        rows: int64 `[shards]`, rows of every shard, in row order.
        bytes: int64 `[shards]`, size of the file that holds the images.
    """

    rows: NDArray[np.int64]
    bytes: NDArray[np.int64]

    def get_shard(self, number: int) -> ShardFile:
        """Returns the files of a shard, by its position in the split."""

    def get_part(self, number: int) -> IndexPart | None:
        """Returns the part of the index that describes a shard; None if there is no index."""

    def read_columns(self, number: int) -> RowColumns:
        """Reads where the images of a shard are, and its columns of numbers.

        Raises:
            DataError: The file that holds them is missing or damaged; the message names it.
        """


def open_table(files: ShardFiles, manifest: Manifest, split: str) -> ShardTable:
    """Opens the table of shards of a split.

    Args:
        files: Files of the shard set.
        manifest: Manifest of the shard set.
        split: Name of the split.

    Raises:
        DataError: There is no such split, or its table is missing or damaged.
    """
    entry = manifest.get_split(split)
    if isinstance(entry, InlineSplit):
        return InlineTable(files, entry)
    return StoredTable(files, entry, manifest.format)


class IndexPart(NamedTuple):
    """The part of an index that describes the rows of one shard.

    Attributes:
        file: The index of the split.
        start: Position of the part in the index.
        size: Number of bytes of the part.
        digest: XXH3-64 of these bytes.
    """

    file: StoredFile
    start: int
    size: int
    digest: int


def read_part(files: ShardFiles, part: IndexPart, shard: ShardFile) -> RowColumns:
    """Reads where the images of a shard are, and its columns of numbers, from the index.

    Args:
        files: Files of the shard set.
        part: Part of the index that describes the shard.
        shard: Entry of the shard.

    Raises:
        DataError: The index is missing or damaged; the message names it.
    """
    content = files.read_range(part.file, part.start, part.size)
    columns = None
    if xxhash.xxh3_64_intdigest(content) == part.digest:
        # Whoever wrote the digests may not have been the builder.
        with suppress(pa.ArrowException, OSError, ValueError):
            columns = _parse_checked(content, shard)
    if columns is None or columns.rows != shard.rows:
        received = f"{files.describe(part.file)}: other content for the rows of {shard.file}"
        raise DataError("an index of rows as it was written", received, DAMAGE_FIX)
    return columns


def _parse_checked(content: bytes, shard: ShardFile) -> RowColumns:
    """Parses the part of the index of a shard.

    Raises:
        ValueError: It is something else, or an image lies outside of the shard.
    """
    columns = parse_rows(content)
    check_ranges(columns.starts, columns.sizes, shard.bytes)
    return columns


class SetShard(NamedTuple):
    """One shard of a set.

    Attributes:
        split: Name of the split.
        shard: Entry of the shard.
        part: Part of the index that describes its rows; None in sets of version 2.
    """

    split: str
    shard: ShardFile
    part: IndexPart | None


class SetShards(Sequence[SetShard]):
    """All shards of a set, split by split. An entry is built on access, so that any number fits in memory.

    Args:
        files: Files of the shard set.
        manifest: Manifest of the shard set.

    Raises:
        DataError: A table of shards is missing or damaged.
    """

    def __init__(self, files: ShardFiles, manifest: Manifest) -> None:
        self._splits = list(manifest.splits)
        self._tables = [open_table(files, manifest, split) for split in self._splits]
        counts = [len(table.rows) for table in self._tables]
        self._ends = np.cumsum(counts, dtype=np.int64)  # position after the last shard of each split

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, index: int) -> SetShard: ...
    @overload
    def __getitem__(self, index: slice) -> list[SetShard]: ...
    def __getitem__(self, index: int | slice) -> SetShard | list[SetShard]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"shard {index} of {len(self)}")
        position = int(np.searchsorted(self._ends, index, side="right"))
        table = self._tables[position]
        number = index - int(self._ends[position]) + len(table.rows)
        return SetShard(self._splits[position], table.get_shard(number), table.get_part(number))


class ShardCalls(Sequence[tuple[Any, ...]]):
    """Arguments of one call per shard: the files of the set, the shard, and what is the same for all.

    Args:
        files: Files of the shard set.
        shards: Shards of the set.
        arguments: Further arguments of every call.
    """

    def __init__(self, files: ShardFiles, shards: Sequence[SetShard], *arguments: Any) -> None:
        self._files = files
        self._shards = shards
        self._arguments = arguments

    def __len__(self) -> int:
        return len(self._shards)

    @overload
    def __getitem__(self, index: int) -> tuple[Any, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Any, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[Any, ...] | list[tuple[Any, ...]]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return (self._files, self._shards[index], *self._arguments)


class InlineTable:
    """The shards of a split in a set of version 2, whose manifest lists them; columns come from the shards.

    Args:
        files: Files of the shard set.
        split: Entry of the split in the manifest.

    Attributes:
        rows: int64 `[shards]`, rows of every shard, in row order.
        bytes: int64 `[shards]`, size of the file that holds the images.
    """

    def __init__(self, files: ShardFiles, split: InlineSplit) -> None:
        self._files = files
        self._shards = split.shards
        self.rows = np.array([shard.rows for shard in split.shards], np.int64)
        self.bytes = np.array([shard.bytes for shard in split.shards], np.int64)

    def get_shard(self, number: int) -> ShardFile:
        """Returns the files of a shard, by its position in the split."""
        return self._shards[number]

    def get_part(self, number: int) -> None:
        """Returns None, because there is no index."""

    def read_columns(self, number: int) -> RowColumns:
        """Reads the columns of a shard from the shard itself, or from its index file."""
        return read_columns(self._files, self._shards[number])


class StoredTable:
    """The shards of a split in a set of version 3, from the sidecars of the split.

    Args:
        files: Files of the shard set.
        split: Entry of the split in the manifest.
        file_format: Format of the shards, `arrow` or `tfrecord`.

    Attributes:
        rows: int64 `[shards]`, rows of every shard, in row order.
        bytes: int64 `[shards]`, size of the file that holds the images.

    Raises:
        DataError: The table of shards is missing or damaged.
    """

    def __init__(self, files: ShardFiles, split: SplitManifest, file_format: str) -> None:
        self._files = files
        self._split = split
        schema = TABLE_SCHEMAS[file_format]
        path = files.fetch(split.table)
        name = files.describe(split.table)
        with report_damage(path):
            content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != split.table.sha256:
            raise DataError("a table of shards as it was written", f"{name}: other content", DAMAGE_FIX)
        with report_damage(path):
            file = pa.ipc.open_file(pa.BufferReader(content))
            if not file.schema.equals(schema):
                raise ValueError(f"the columns are not {', '.join(schema.names)}")
            self._columns = _read_table(file, schema)
        self.rows = self._columns["rows"].astype(np.int64)
        self.bytes = self._columns["bytes"]
        if (len(self.rows), int(self.rows.sum())) != (split.shard_count, split.rows):
            received = f"{name}: shards={len(self.rows)} rows={self.rows.sum()}"
            raise DataError(f"{split.shard_count} shards of {split.rows} rows", received, DAMAGE_FIX)

    def get_shard(self, number: int) -> ShardFile:
        """Returns the files of a shard, by its position in the split."""
        columns = self._columns
        file = self._split.file_pattern.format(number=int(columns["number"][number]))
        index = None
        if "sidecar_bytes" in columns:
            index = StoredFile(
                file=get_index_name(file),
                bytes=int(columns["sidecar_bytes"][number]),
                sha256=columns["sidecar_sha256"][number].tobytes().hex(),
            )
        return ShardFile(
            file=file,
            bytes=int(columns["bytes"][number]),
            sha256=columns["sha256"][number].tobytes().hex(),
            rows=int(columns["rows"][number]),
            index=index,
        )

    def get_part(self, number: int) -> IndexPart:
        """Returns the part of the index that describes a shard."""
        return IndexPart(
            file=self._split.index,
            start=int(self._columns["index_offset"][number]),
            size=int(self._columns["index_bytes"][number]),
            digest=int(self._columns["index_digest"][number]),
        )

    def read_columns(self, number: int) -> RowColumns:
        """Reads the columns of a shard from its part of the index."""
        return read_part(self._files, self.get_part(number), self.get_shard(number))


def _read_table(file: Any, schema: Any) -> dict[str, NDArray[Any]]:
    """Reads all columns of a table of shards: numbers `[n]`, digests uint8 `[n, 32]`."""
    batches = [file.get_batch(index) for index in range(file.num_record_batches)]
    columns = {}
    for field in schema:
        if pa.types.is_fixed_size_binary(field.type):
            width = field.type.byte_width
            # [n * 32] -> [n, 32]
            values = read_column(batches, field.name, np.uint8, width).reshape(-1, width)
        else:
            values = read_column(batches, field.name, field.type.to_pandas_dtype())
        columns[field.name] = values
    return columns
