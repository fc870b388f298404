"""Writes and opens a shard in any file format; the suffix of its name selects the format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from pipelines.errors import DataError
from pipelines.open_file import DAMAGE_FIX, OpenFile
from pipelines.records import Record
from pipelines.shards.arrow import (
    ImageBuffer,
    RowColumns,
    ShardRows,
    read_arrow,
    read_arrow_table,
    write_arrow,
)
from pipelines.shards.files import ShardFiles
from pipelines.shards.manifest import ShardFile, StoredFile
from pipelines.shards.tfrecord import read_index, write_tfrecord
from pipelines.storage import hash_file, replace_file, sync

__all__ = [
    "ShardRows",
    "describe_shard",
    "get_index_name",
    "open_shard",
    "read_columns",
    "read_table",
    "write_shard",
]


def write_shard(
    directory: Path, file: str, records: Iterable[Record], images: ImageBuffer | None = None
) -> ShardFile:
    """Writes a shard, whole or not at all; the same records give the same bytes.

    The content is flushed to disk. The file's name is not: the caller does that once for all shards.

    Args:
        directory: Existing directory to write to.
        file: Name of the file; its suffix, `.arrow` or `.tfrecord`, selects the format.
        records: Rows of the shard, which need not fit in memory at once.
        images: Memory for the images of an `.arrow` shard, which nobody else uses meanwhile; None to obtain
            it.

    Returns:
        The shard's entry in the manifest. Without records, no file is created.

    Raises:
        OSError: A file cannot be written.
    """
    records = iter(records)
    first = next(records, None)
    if first is None:
        return ShardFile(file=file, rows=0, bytes=0, sha256="")
    records = chain((first,), records)

    path = directory / file
    if path.suffix == ".arrow":
        with replace_file(path, durable=False) as temporary:
            rows = write_arrow(temporary, records, images)
            stored = flush_file(temporary, path.name)
        return ShardFile(rows=rows, **stored.model_dump())

    index = directory / get_index_name(file)
    with (
        replace_file(path, durable=False) as temporary,
        replace_file(index, durable=False) as temporary_index,
    ):
        rows = write_tfrecord(temporary, temporary_index, records)
        stored = flush_file(temporary, path.name)
        stored_index = flush_file(temporary_index, index.name)
    return ShardFile(rows=rows, index=stored_index, **stored.model_dump())


@contextmanager
def open_shard(files: ShardFiles, shard: ShardFile) -> Iterator[ShardRows]:
    """Opens a shard for the length of a block and compares it with the manifest; images are read on demand.

    Args:
        files: Files of the shard set.
        shard: Entry of the shard in the manifest.

    Raises:
        DataError: A file of the shard is missing, damaged or differs from the manifest; the message names it.
    """
    with files.open(shard.files) as opened:
        columns, table = _read_shard(files, shard, opened)
        yield ShardRows(**vars(columns), file=opened[-1], table=table)


def read_columns(files: ShardFiles, shard: ShardFile) -> RowColumns:
    """Reads from a shard where its images are, and its columns of numbers.

    Raises:
        DataError: The file that holds them is missing, damaged or differs from the manifest.
    """
    needed = (shard.index or shard,)
    with files.open(needed) as opened:
        columns, _ = _read_shard(files, shard, opened)
        return columns


def read_table(files: ShardFiles, shard: ShardFile) -> Any:
    """Reads the Arrow table with identifiers and bounding boxes of a shard.

    Raises:
        DataError: The file that holds them is missing, damaged or differs from the manifest.
    """
    needed = (shard.index or shard,)
    with files.open(needed) as opened:
        if shard.index:
            _, table = _read_shard(files, shard, opened)
            return table
        table = read_arrow_table(opened[0].path)
        _check_rows(files, shard, table.num_rows)
        return table


def _read_shard(files: ShardFiles, shard: ShardFile, opened: Sequence[OpenFile]) -> tuple[RowColumns, Any]:
    """Reads all columns of a shard except the images, and compares their number of rows with the manifest.

    Args:
        files: Files of the shard set.
        shard: Entry of the shard in the manifest.
        opened: Its files, that with the columns first.
    """
    path = opened[0].path
    columns, table = read_index(path, shard.bytes) if shard.index else read_arrow(path)
    _check_rows(files, shard, columns.rows)
    return columns, table


def _check_rows(files: ShardFiles, shard: ShardFile, rows: int) -> None:
    if rows != shard.rows:
        received = f"{describe_shard(files, shard)}: rows={rows}"
        raise DataError(f"a shard file of {shard.rows} rows", received, DAMAGE_FIX)


def describe_shard(files: ShardFiles, shard: ShardFile) -> str:
    """Returns the paths of a shard's files for errors that cannot tell which of them is damaged."""
    path = files.describe(shard)
    return f"{path} or its index {shard.index.file}" if shard.index else path


def get_index_name(file: str) -> str:
    """Returns the name of the file that holds the offsets of the images in a `.tfrecord` file."""
    return str(Path(file).with_suffix(".index.arrow"))


def flush_file(path: Path, name: str) -> StoredFile:
    """Flushes a file to disk, and computes its digest while the disk is at work.

    Args:
        path: Where the file is now.
        name: Name that it will have in the shard set.

    Returns:
        Its name, size and digest.
    """
    with ThreadPoolExecutor(1) as pool:
        flush = pool.submit(sync, path)
        digest = hash_file(path)
        flush.result()
    return StoredFile(file=name, bytes=path.stat().st_size, sha256=digest)
