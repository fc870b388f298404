"""Writes and opens a shard in any file format; the suffix of its name selects the format."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from pipelines.errors import DataError
from pipelines.records import Record
from pipelines.shards.arrow import DAMAGE_FIX, ShardRows, open_arrow, write_arrow
from pipelines.shards.manifest import ShardFile, StoredFile
from pipelines.shards.tfrecord import open_tfrecord, write_tfrecord
from pipelines.storage import hash_file, replace_file, sync

__all__ = ["ShardRows", "format_paths", "get_index_name", "open_shard", "write_shard"]


def write_shard(directory: Path, file: str, records: Iterable[Record]) -> ShardFile:
    """Writes a shard, whole or not at all; the same records give the same bytes.

    The content is flushed to disk. The file's name is not: the caller does that once for all shards.

    Args:
        directory: Existing directory to write to.
        file: Name of the file; its suffix, `.arrow` or `.tfrecord`, selects the format.
        records: Rows of the shard, which need not fit in memory at once.

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
            rows = write_arrow(temporary, records)
            sync(temporary)
        return ShardFile(rows=rows, **describe_file(path).model_dump())

    index = directory / get_index_name(file)
    with (
        replace_file(path, durable=False) as temporary,
        replace_file(index, durable=False) as temporary_index,
    ):
        rows = write_tfrecord(temporary, temporary_index, records)
        sync(temporary)
        sync(temporary_index)
    return ShardFile(rows=rows, index=describe_file(index), **describe_file(path).model_dump())


def open_shard(directory: Path, shard: ShardFile) -> ShardRows:
    """Memory-maps a shard and compares it with the manifest; images are checked when they are read.

    Args:
        directory: Directory of the shard set.
        shard: The shard's entry in the manifest.

    Raises:
        DataError: A file of the shard is missing, damaged or differs from the manifest; the message names it.
    """
    path = find_file(directory, shard)
    index = find_file(directory, shard.index) if shard.index else None
    rows = open_tfrecord(path, index) if index else open_arrow(path)
    if rows.rows != shard.rows:
        raise DataError(
            f"a shard file of {shard.rows} rows",
            f"{format_paths(directory, shard)}: rows={rows.rows}",
            DAMAGE_FIX,
        )
    return rows


def format_paths(directory: Path, shard: ShardFile) -> str:
    """Returns the paths of a shard's files for errors that cannot tell which of them is damaged."""
    path = str(directory / shard.file)
    return f"{path} or its index {shard.index.file}" if shard.index else path


def get_index_name(file: str) -> str:
    """Returns the name of the file that holds the offsets of the images in a `.tfrecord` file."""
    return str(Path(file).with_suffix(".index.arrow"))


def describe_file(path: Path) -> StoredFile:
    """Returns the name, size and digest of a file on disk."""
    return StoredFile(file=path.name, bytes=path.stat().st_size, sha256=hash_file(path))


def find_file(directory: Path, file: StoredFile) -> Path:
    """Returns the path of a file of a shard set.

    Raises:
        DataError: The file is missing, or its size is not that in the manifest.
    """
    path = directory / file.file
    if not path.is_file():
        raise DataError("every shard file of the manifest", f"{path} (missing)", DAMAGE_FIX)
    size = path.stat().st_size
    if size != file.bytes:
        raise DataError(f"a shard file of {file.bytes} bytes", f"{path}: bytes={size}", DAMAGE_FIX)
    return path
