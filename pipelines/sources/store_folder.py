"""Lists and reads the images below a folder of an object store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any

import pyarrow as pa

from pipelines.errors import DataError
from pipelines.records import Example, Rejected
from pipelines.remote.ranges import map_ahead
from pipelines.remote.store import ObjectInfo, list_folder, list_objects, read_bytes
from pipelines.remote.uri import Uri, parse_location
from pipelines.sources.layout import MAX_FILE, PATH, SIZE, build_table, reject_by_name
from pipelines.sources.locations import hash_version

STAMP = pa.field("stamp", pa.int64(), nullable=False)
SCHEMA = pa.schema([PATH, SIZE, STAMP])
LISTINGS = 16  # folders listed at the same time
MIN_FOLDERS = 32  # of the level that is listed in parallel, if there are as many


def list_store_files(root: Uri) -> pa.Table:
    """Lists the objects below a folder of a store, except hidden ones, and those that stand for a folder.

    The folders of the first level, or of the second one if these are few, are listed at the same time.

    Args:
        root: URI of the folder.

    Returns:
        Table with the columns of `SCHEMA`: path inside the folder, size in bytes, and a hash of the version.

    Raises:
        GlassboxError: The store cannot be reached, or denies access.
    """
    folders, objects = _list_level(root, [root])
    if len(folders) < MIN_FOLDERS:
        inner_folders, inner_objects = _list_level(root, folders)
        folders = inner_folders
        objects.extend(inner_objects)
    tables = [build_table(objects, SCHEMA)]
    tables.extend(map_ahead(lambda folder: build_table(_list_below(root, folder), SCHEMA), folders, LISTINGS))
    return pa.concat_tables(tables)


def read_objects(root: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[Example | Rejected]:
    """Yields the images of some objects in their order, with several requests in flight.

    Args:
        root: URI of the folder.
        rows: Path inside the folder in bytes, `label` and `size` of each object.

    Raises:
        DataError: An object has changed since the folder was listed.
        GlassboxError: An object has disappeared, or cannot be read.
    """
    folder = parse_location(root)
    return map_ahead(lambda row: _read_row(folder, row), rows, get_bytes=itemgetter("size"))


def read_object(uri: Uri, identifier: str, label: int, size: int) -> Example | Rejected:
    """Reads one image.

    Args:
        uri: Location of the object.
        identifier: Name of the image in its source.
        label: Index of its class.
        size: Size in bytes when it was listed.

    Raises:
        DataError: The object has another size now.
        GlassboxError: The object has disappeared, or cannot be read.
    """
    if size > MAX_FILE:
        return Rejected(identifier, f"larger than {MAX_FILE >> 20} MiB: {size} bytes")
    content = bytes(read_bytes(uri, MAX_FILE))
    if len(content) != size:
        raise DataError(
            "objects that do not change while they are read",
            f"{uri}: bytes={len(content)}, before {size}",
            "make sure that nothing changes them, then start again",
        )
    return Example(content, label, identifier)


def _read_row(folder: Any, row: Mapping[str, Any]) -> Example | Rejected:
    path = row["path"]
    rejected = reject_by_name(path)
    if rejected is not None:
        return rejected
    name = path.decode()
    return read_object(folder / name, name, row["label"], row["size"])


def _list_level(root: Uri, folders: Iterable[Uri]) -> tuple[list[Uri], list[tuple[bytes, int, int]]]:
    """Returns the folders directly inside some folders, and rows of the objects directly inside them."""
    inner_folders: list[Uri] = []
    rows: list[tuple[bytes, int, int]] = []
    for folder, (names, objects) in zip(folders, map_ahead(list_folder, folders, LISTINGS), strict=True):
        inner_folders.extend(folder / name for name in names if not name.startswith("."))
        rows.extend(_build_rows(root, objects))
    return inner_folders, rows


def _list_below(root: Uri, folder: Uri) -> Iterator[tuple[bytes, int, int]]:
    return _build_rows(root, list_objects(folder))


def _build_rows(root: Uri, objects: Iterable[ObjectInfo]) -> Iterator[tuple[bytes, int, int]]:
    start = len(root.key.rstrip("/")) + 1 if root.key else 0
    for info in objects:
        path = info.uri.key[start:]
        is_hidden = any(part.startswith(".") for part in path.split("/"))
        if path and not path.endswith("/") and not is_hidden:
            yield os.fsencode(path), info.size, hash_version(info)
