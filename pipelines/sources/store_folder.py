"""Lists and reads the images below a folder of an object store."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from operator import itemgetter
from typing import Any

import pyarrow as pa

from pipelines.errors import DataError
from pipelines.records import Example, Rejected
from pipelines.remote.ranges import map_ahead
from pipelines.remote.store import ObjectInfo, list_folder, list_objects, read_version
from pipelines.remote.uri import Uri, parse_location
from pipelines.sources.layout import (
    MAX_FILE,
    PATH,
    SIZE,
    build_batches,
    build_table,
    is_image,
    reject_by_name,
)
from pipelines.sources.locations import hash_etag, hash_version

STAMP = pa.field("stamp", pa.int64(), nullable=False)
SCHEMA = pa.schema([PATH, SIZE, STAMP])
LISTINGS = 16  # folders listed at the same time
QUEUED_BATCHES = 4
MIN_FOLDERS = 32  # of the level that is listed in parallel, if there are as many


class StoreTree:
    """Folders of an object store, a `pipelines.sources.splits.FolderTree`. Each is listed once, when needed.

    Args:
        root: URI of the folder at the top.
    """

    def __init__(self, root: Uri) -> None:
        self._root = root
        self._levels: dict[str, tuple[list[str], int]] = {}

    def list_folders(self, path: str) -> list[str]:
        """Returns the names of the folders directly inside a folder, sorted."""
        return self._list(path)[0]

    def has_images(self, path: str) -> bool:
        """Tells whether there are images directly inside a folder."""
        return self.count_images(path) > 0

    def count_images(self, path: str) -> int:
        """Returns the number of images directly inside a folder."""
        return self._list(path)[1]

    def _list(self, path: str) -> tuple[list[str], int]:
        if path not in self._levels:
            names, objects = list_folder(self._root / path if path else self._root)
            folders = [name for name in names if not name.startswith(".")]
            files = [info.uri.name for info in objects if not info.uri.name.startswith(".")]
            self._levels[path] = (folders, sum(is_image(os.fsencode(name)) for name in files))
        return self._levels[path]


def iterate_store_files(root: Uri, folders: Sequence[Uri]) -> Iterator[pa.RecordBatch]:
    """Yields the objects below some folders in batches, with the columns of `SCHEMA`, except hidden ones.

    Several folders are listed at the same time; the batches have no particular order.

    Args:
        root: Folder that the paths are relative to.
        folders: The folders to list.

    Raises:
        GlassboxError: The store cannot be reached, or denies access.
    """
    results: queue.Queue[pa.RecordBatch | Exception | None] = queue.Queue(QUEUED_BATCHES)
    stop = threading.Event()

    def list_one(folder: Uri) -> None:
        try:
            for batch in build_batches(_list_below(root, folder), SCHEMA):
                results.put(batch)
                if stop.is_set():
                    return
            results.put(None)
        except Exception as error:  # noqa: BLE001 (raised in the thread that reads the results)
            results.put(error)

    with ThreadPoolExecutor(LISTINGS, "listing") as pool:
        try:
            for folder in folders:
                pool.submit(list_one, folder)
            remaining = len(folders)
            while remaining:
                result = results.get()
                if isinstance(result, Exception):
                    raise result
                if result is None:
                    remaining -= 1
                else:
                    yield result
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            with suppress(queue.Empty):  # makes room, so that threads that wait for it end
                while True:
                    results.get_nowait()


def list_store_files(root: Uri) -> pa.Table:
    """Lists the objects below a folder of a store, except hidden ones, in memory.

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
        rows: Path inside the folder in bytes, `label`, `size` and `stamp` of each object.

    Raises:
        DataError: An object has changed since the folder was listed.
        GlassboxError: An object has disappeared, or cannot be read.
    """
    folder = parse_location(root)
    return map_ahead(lambda row: _read_row(folder, row), rows, get_bytes=itemgetter("size"))


def read_object(uri: Uri, identifier: str, label: int, size: int, stamp: int) -> Example | Rejected:
    """Reads one image.

    Args:
        uri: Location of the object.
        identifier: Name of the image in its source.
        label: Index of its class.
        size: Size in bytes when it was listed.
        stamp: Hash of its version when it was listed.

    Raises:
        DataError: The object has changed.
        GlassboxError: The object has disappeared, or cannot be read.
    """
    if size > MAX_FILE:
        return Rejected(identifier, f"larger than {MAX_FILE >> 20} MiB: {size} bytes")
    content, etag = read_version(uri, MAX_FILE)
    # Listings of Google Cloud Storage lack the generation, so that the stamp is of the time of change there.
    has_other_etag = bool(etag) and uri.scheme != "gs" and hash_etag(etag) != stamp
    if len(content) != size or has_other_etag:
        version = "another" if has_other_etag else "the same"
        raise DataError(
            "objects that do not change while they are read",
            f"{uri}: bytes={len(content)}, before {size}; etag={version}",
            "make sure that nothing changes them, then start again",
        )
    return Example(content, label, identifier)


def _read_row(folder: Any, row: Mapping[str, Any]) -> Example | Rejected:
    path = row["path"]
    rejected = reject_by_name(path)
    if rejected is not None:
        return rejected
    name = path.decode()
    return read_object(folder / name, name, row["label"], row["size"], row["stamp"])


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
