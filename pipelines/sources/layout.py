"""Derives splits, classes and a fixed order from the paths of files, in a folder or an archive alike."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.records import Rejected
from pipelines.sources.classes import find_classes
from pipelines.sources.listing import CHUNK, MEMORY_BYTES, FileTable, TableSorter, TableWriter

SUFFIXES = frozenset({b".jpg", b".jpeg", b".jpe", b".jfif", b".png", b".bmp", b".gif", b".webp"})
MAX_FILE = 2**28  # bytes: the pixels of the largest image in a shard; workers hold one file at a time
PATH = pa.field("path", pa.large_binary(), nullable=False)
SIZE = pa.field("size", pa.int64(), nullable=False)
# Added while files are arranged
HASH = pa.field("hash", pa.uint64(), nullable=False)
PLACE = pa.field("place", pa.int32(), nullable=False)
LABEL = pa.field("label", pa.int32())


def build_table(rows: Iterable[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Collects rows in columns, which take about 60 bytes per file; Python objects would take 250."""
    return pa.Table.from_batches(list(build_batches(rows, schema)), schema)


def build_batches(rows: Iterable[tuple[Any, ...]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yields rows as batches of columns."""
    iterator = iter(rows)
    while chunk := list(islice(iterator, CHUNK)):
        columns = zip(*chunk, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        yield pa.record_batch(arrays, schema=schema)


class Arrangement(NamedTuple):
    """Files assigned to splits and classes.

    Attributes:
        classes: Class names, sorted, or in the order that the user specified.
        splits: Per split, the files in reading order, with a column `label`: int32, -1 without a class. Large
            tables are on disk, unless all files were given in memory.
        notes: Sentences about what was decided.
    """

    classes: tuple[str, ...]
    splits: dict[str, Any]
    notes: tuple[str, ...]


class TableTree:
    """Folders of an archive, a `pipelines.sources.splits.FolderTree`.

    Args:
        files: Table with a column `path`.
        folders: Paths of folders, which may be empty.
    """

    def __init__(self, files: FileTable, folders: Iterable[bytes]) -> None:
        self._children: dict[str, set[str]] = {}
        self._with_images: set[str] = set()
        paths = set(folders)
        for path in _iterate_paths(files):
            folder = path.rpartition(b"/")[0]
            paths.add(folder)
            if is_image(path):
                self._with_images.add(os.fsdecode(folder))
        for folder in paths:
            self._add(os.fsdecode(folder))

    def _add(self, folder: str) -> None:
        while folder:
            parent, _, name = folder.rpartition("/")
            if not name.startswith("."):
                self._children.setdefault(parent, set()).add(name)
            folder = parent

    def list_folders(self, path: str) -> list[str]:
        """Returns the names of the folders directly inside a folder, sorted."""
        return sorted(self._children.get(path, ()))

    def has_images(self, path: str) -> bool:
        """Tells whether there are images directly inside a folder."""
        return path in self._with_images


def arrange_files(
    source: str,
    files: pa.Table,
    split_folders: Mapping[str, str],
    folders: Collection[bytes] = (),
    class_names: tuple[str, ...] | None = None,
) -> Arrangement:
    """Assigns files to splits and classes, in memory. See `arrange_batches`.

    Args:
        source: Name of the source for messages.
        files: Table with a column `path` and any other columns.
        split_folders: Per split, the folder of its class folders.
        folders: Paths of folders, which may be empty.
        class_names: Names of all classes in the order of their labels; None for those of the folders.

    Raises:
        DataError: The classes cannot be determined.
    """
    batches = files.to_batches(max_chunksize=CHUNK)
    return arrange_batches(
        source, batches, files.schema, split_folders, folders, class_names, memory_bytes=math.inf
    )


def arrange_batches(
    source: str,
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    split_folders: Mapping[str, str],
    folders: Collection[bytes] = (),
    class_names: tuple[str, ...] | None = None,
    memory_bytes: float = MEMORY_BYTES,
) -> Arrangement:
    """Assigns files to splits and classes by their paths, and sorts them into reading order.

    Folders inside a class folder belong to the class. Hidden files and folders are left out, and so are
    files outside of class folders, whose images are counted. A folder without any image in any split is not a
    class. Folders whose names differ only in letter case or in the Unicode form of their characters (macOS
    decomposes them) are one class.

    Files are sorted by a hash of their path: every range is a random mix of the classes, and the order is the
    same in a copy. Files with the same path keep their given order.

    Args:
        source: Name of the source for messages.
        batches: Files with a column `path` (bytes, `/` between the parts) and any other columns. Files with a
            `problem` do not make their folder a class.
        schema: Names and types of the columns.
        split_folders: Per split, the folder of its class folders (see `pipelines.sources.splits`).
        folders: Paths of folders, which may be empty; complete only after the last batch.
        class_names: Names of all classes in the order of their labels; None for those of the folders.
        memory_bytes: Size of a table from which it is kept on disk.

    Raises:
        DataError: There are fewer than two classes, the name of a class is not UTF-8 or not one of
            `class_names`, or a class has no training images.
    """
    locator = _Locator(split_folders)
    sorter = TableSorter(pa.schema([*schema, HASH, PLACE]), memory_bytes)
    for batch in batches:
        sorter.add(locator.locate(batch))
    images = locator.count_images()
    class_folders = find_classes(source, images, class_names)

    all_folders = {folder for _, folder in locator.places} | locator.list_class_folders(folders)
    empty = sorted(map(os.fsdecode, all_folders - images.keys()))
    notes = [*class_folders.notes]
    if empty:
        notes.append(f"not a class, because there are no images: {', '.join(map(repr, empty))}")
    if locator.outside:
        notes.append(f"images outside of class folders, not read: {locator.outside}")

    labels = [class_folders.labels.get(folder, -1) for _, folder in locator.places]
    label_of_place = np.array(labels or [-1], np.int32)
    split_of_place = np.array([locator.splits.index(split) for split, _ in locator.places] or [-1])
    writers = [TableWriter(pa.schema([*schema, LABEL]), memory_bytes) for _ in locator.splits]
    for batch in sorter.iterate_batches():
        place = batch["place"].to_numpy()
        rows = batch.select(schema.names).append_column(LABEL, pa.array(label_of_place[place]))
        for index, writer in enumerate(writers):
            is_in_split = split_of_place[place] == index
            writer.add(rows if is_in_split.all() else rows.filter(pa.array(is_in_split)))
    tables = {split: writer.finish() for split, writer in zip(locator.splits, writers, strict=True)}
    return Arrangement(class_folders.names, tables, tuple(notes))


class _Locator:
    """Finds split and class folder of files, and counts what it finds.

    Args:
        split_folders: Per split, the folder of its class folders.

    Attributes:
        splits: Names of the splits.
        places: Split and name of every class folder of a split that has files.
        outside: Number of images outside of class folders.
    """

    def __init__(self, split_folders: Mapping[str, str]) -> None:
        self._prefixes = _build_prefixes(split_folders)
        self._indices: dict[tuple[str, bytes], int] = {}
        self._images: Counter[int] = Counter()
        self.splits = tuple(self._prefixes)
        self.places: list[tuple[str, bytes]] = []
        self.outside = 0

    def locate(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the files inside of class folders, with the columns `HASH` and `PLACE`."""
        paths = batch["path"].to_pylist()
        place = np.fromiter(self._iterate_places(paths), np.int32, len(paths))
        with_suffix = np.fromiter(map(is_image, paths), bool, len(paths))
        is_inside = place >= 0
        is_counted = is_inside & with_suffix & _find_usable(batch)
        for index, count in enumerate(np.bincount(place[is_counted]).tolist()):
            self._images[index] += count
        for row in np.flatnonzero(~is_inside & with_suffix).tolist():
            self.outside += not _is_hidden(paths[row])
        batch = batch.append_column(HASH, pa.array(_hash_paths(paths)))
        batch = batch.append_column(PLACE, pa.array(place))
        return batch if is_inside.all() else batch.filter(pa.array(is_inside))

    def count_images(self) -> dict[bytes, Counter[str]]:
        """Returns the number of images per class folder and split, of class folders that have any."""
        images: dict[bytes, Counter[str]] = {}
        for index, (split, folder) in enumerate(self.places):
            if self._images[index]:
                images.setdefault(folder, Counter())[split] += self._images[index]
        return images

    def _iterate_places(self, paths: Iterable[bytes]) -> Iterator[int]:
        """Yields the index in `places` of every file, or -1. Files of one folder follow each other."""
        newest: bytes | None = None
        index = -1
        for path in paths:
            folder, _, name = path.rpartition(b"/")
            if name.startswith(b"."):
                yield -1
                continue
            if folder != newest:
                newest = folder
                index = self._find_place(path)
            yield index

    def _find_place(self, path: bytes) -> int:
        location = _locate(path, self._prefixes)
        if location is None:
            return -1
        if location not in self._indices:
            self._indices[location] = len(self.places)
            self.places.append(location)
        return self._indices[location]

    def list_class_folders(self, folders: Iterable[bytes]) -> set[bytes]:
        """Returns the class folders among some folders, which may be empty."""
        locations = [_locate(folder + b"/", self._prefixes) for folder in folders]
        return {location[1] for location in locations if location is not None}


def divide_table(splits: Mapping[str, Any], is_held_out: NDArray[np.bool_]) -> dict[str, Any]:
    """Divides the table of `train` in `train` and `validation`, and leaves the other splits as they are.

    Args:
        splits: Table per split.
        is_held_out: Whether each row of `train` becomes one of `validation`: bool `[n]`.
    """
    table = splits["train"]
    memory_bytes = math.inf if isinstance(table, pa.Table) else MEMORY_BYTES
    writers = {split: TableWriter(table.schema, memory_bytes) for split in ("train", "validation")}
    start = 0
    for batch in table.to_batches(max_chunksize=CHUNK):
        mask = is_held_out[start : start + len(batch)]
        writers["train"].add(batch.filter(pa.array(~mask)))
        writers["validation"].add(batch.filter(pa.array(mask)))
        start += len(batch)
    divided = {split: writer.finish() for split, writer in writers.items()}
    return divided | {split: table for split, table in splits.items() if split not in divided}


def find_labels(files: FileTable) -> NDArray[np.int32]:
    """Returns the labels of files, -1 for those whose name or problem excludes them: int32 `[n]`."""
    labels = np.empty(len(files), np.int32)
    start = 0
    for batch in files.to_batches(max_chunksize=CHUNK):
        with_suffix = np.fromiter(map(is_image, batch["path"].to_pylist()), bool, len(batch))
        is_labelled = with_suffix & _find_usable(batch)
        labels[start : start + len(batch)] = np.where(is_labelled, batch["label"].to_numpy(), -1)
        start += len(batch)
    return labels


def hash_path(path: bytes) -> int:
    """Returns the 64-bit hash that determines the place of a file in the reading order."""
    return int.from_bytes(hashlib.blake2b(path, digest_size=8).digest(), "big")


def _hash_paths(paths: Iterable[bytes]) -> NDArray[np.uint64]:
    digests = b"".join([hashlib.blake2b(path, digest_size=8).digest() for path in paths])
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def reject_by_name(path: bytes) -> Rejected | None:
    """Returns a rejection for a file whose name cannot be that of an image."""
    try:
        name = path.decode()
    except UnicodeDecodeError:
        return Rejected(path.decode("utf-8", "backslashreplace"), "the name is not UTF-8")
    if is_image(path):
        return None
    suffix = os.path.splitext(name)[1]
    return Rejected(name, f"not an image suffix: {suffix or 'none'}")


def is_image(path: bytes) -> bool:
    """Tells whether a path has the suffix of an image."""
    dot = path.rfind(b".")
    return dot > 0 and path[dot:].lower() in SUFFIXES and path[dot - 1 : dot] != b"/"


def compute_fingerprint(classes: tuple[str, ...], splits: Mapping[str, Any], columns: Iterable[str]) -> str:
    """Computes a digest over the classes, the path of every file, and some integer columns."""
    digest = hashlib.sha256(repr(classes).encode())
    for split, table in sorted(splits.items()):
        digest.update(repr((split, len(table))).encode())
        for batch in table.to_batches(max_chunksize=CHUNK):
            lengths = pc.binary_length(batch["path"]).to_numpy().astype("<i8")
            digest.update(lengths.tobytes() + _join_values(batch["path"], int(lengths.sum())))
            for column in columns:
                digest.update(batch[column].to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    return digest.hexdigest()


def _join_values(values: pa.LargeBinaryArray, size: int) -> bytes:
    """Returns all values one after the other, which is how Arrow stores them.

    Args:
        values: Array without nulls.
        size: Number of bytes of all values.
    """
    if not size:
        return b""
    _, offsets, data = values.buffers()
    (start,) = np.frombuffer(offsets, np.int64, 1, 8 * values.offset)
    return bytes(memoryview(data)[start : start + size])


def list_top_folders(files: FileTable, folders: Iterable[bytes]) -> set[bytes]:
    """Returns the names of the folders at the top."""
    tops = {path.partition(b"/")[0] for path in _iterate_paths(files) if b"/" in path}
    return tops | {folder.partition(b"/")[0] for folder in folders}


def _iterate_paths(files: FileTable) -> Iterator[bytes]:
    for batch in files.to_batches(max_chunksize=CHUNK):
        yield from batch["path"].to_pylist()


def _find_usable(batch: pa.RecordBatch) -> NDArray[np.bool_]:
    """Returns whether each file can be read, as far as its entry says: bool `[n]`."""
    if "problem" not in batch.schema.names:
        return np.ones(len(batch), bool)
    is_usable: NDArray[np.bool_] = pc.is_null(batch["problem"]).to_numpy(zero_copy_only=False)
    return is_usable


def _build_prefixes(split_folders: Mapping[str, str]) -> dict[str, bytes]:
    """Returns, per split, the prefix of the paths of its files."""
    return {split: os.fsencode(f"{folder}/" if folder else "") for split, folder in split_folders.items()}


def _is_hidden(path: bytes, start: int = 0) -> bool:
    return path.startswith(b".", start) or path.find(b"/.", start) >= 0


def _locate(path: bytes, prefixes: Mapping[str, bytes]) -> tuple[str, bytes] | None:
    """Returns the split of a file and the name of its class folder; None if it is in neither or hidden."""
    for split, prefix in prefixes.items():
        if path.startswith(prefix):
            folder, slash, _ = path[len(prefix) :].partition(b"/")
            return (split, folder) if slash and not _is_hidden(path, len(prefix)) else None
    return None


def sort_rows(files: pa.Table, rows: NDArray[np.int64], path_hash: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Sorts rows by the hash of their path, then by path and row."""
    keys = pa.table({"hash": path_hash[rows], "path": files["path"].take(rows), "row": rows})
    sort_keys = [(name, "ascending") for name in keys.column_names]
    order: NDArray[np.uint64] = pc.sort_indices(keys, sort_keys).to_numpy()
    return rows[order]
