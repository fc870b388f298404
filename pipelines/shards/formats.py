"""The file formats of a shard behind one pair of functions: the suffix of the file says which."""

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

__all__ = ["ShardRows", "index_name", "named", "open_shard", "write_shard"]


def write_shard(directory: Path, file: str, records: Iterable[Record]) -> ShardFile:
    """Writes a shard, whole or not at all; the same records give the same bytes, which no loss of power changes any more.

    Its name is the caller's to make durable, for all shards of a directory at once.

    Args:
        directory: Where it goes.
        file: Its name; the suffix `.arrow` or `.tfrecord` says the format.
        records: The rows, consumed as they come.

    Returns:
        What the manifest says of it. Where there are no records, no file is made.

    Raises:
        OSError: It cannot be written.
    """
    records = iter(records)
    first = next(records, None)
    if first is None:
        return ShardFile(file=file, rows=0, bytes=0, sha256="")
    records = chain((first,), records)
    path, index = directory / file, directory / get_index_name(file)
    if path.suffix == ".arrow":
        with replace_file(path, durable=False) as temporary:
            rows = write_arrow(temporary, records)
            sync(temporary)
        return ShardFile(rows=rows, **describe_file(path).model_dump())
    with replace_file(path, durable=False) as temporary, replace_file(index, durable=False) as temporary_index:
        rows = write_tfrecord(temporary, temporary_index, records)
        sync(temporary)
        sync(temporary_index)
    return ShardFile(rows=rows, index=describe_file(index), **describe_file(path).model_dump())


def open_shard(directory: Path, shard: ShardFile) -> ShardRows:
    """Maps a shard into memory and holds it against the manifest; images are checked when they are read.

    Raises:
        DataError: A file of it is missing, damaged, or not what the manifest says; names the file.
    """
    path = find_file(directory, shard)
    opened = open_arrow(path) if shard.index is None else open_tfrecord(path, find_file(directory, shard.index))
    if opened.rows != shard.rows:
        raise DataError(
            f"a shard file of {shard.rows} rows", f"{format_paths(directory, shard)}: rows={opened.rows}", DAMAGE_FIX
        )
    return opened


def format_paths(directory: Path, shard: ShardFile) -> str:
    """The files of a shard, for an error that does not know which of them is damaged."""
    return f"{directory / shard.file}" + (f" or its index {shard.index.file}" if shard.index else "")


def get_index_name(file: str) -> str:
    """The file that says where the images of a `.tfrecord` file lie."""
    return str(Path(file).with_suffix(".index.arrow"))


def describe_file(path: Path) -> StoredFile:
    """Size and digest of a file as it lies there."""
    return StoredFile(file=path.name, bytes=path.stat().st_size, sha256=hash_file(path))


def find_file(directory: Path, file: StoredFile) -> Path:
    """The path of a file of a shard set.

    Raises:
        DataError: It is missing or of another size than when it was written.
    """
    path = directory / file.file
    if not path.is_file():
        raise DataError("every shard file of the manifest", f"{path} (missing)", DAMAGE_FIX)
    size = path.stat().st_size
    if size != file.bytes:
        raise DataError(f"a shard file of {file.bytes} bytes", f"{path}: bytes={size}", DAMAGE_FIX)
    return path
