"""Derives splits, classes and a fixed order from the paths of files, in a folder or an archive alike."""

from __future__ import annotations

import hashlib
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

SUFFIXES = frozenset({b".jpg", b".jpeg", b".jpe", b".jfif", b".png", b".bmp", b".gif", b".webp"})
MAX_FILE = 2**28  # bytes: the pixels of the largest image in a shard; workers hold one file at a time
PATH = pa.field("path", pa.large_binary(), nullable=False)
SIZE = pa.field("size", pa.int64(), nullable=False)
CHUNK = 65536  # rows converted to Python objects at a time


def build_table(rows: Iterable[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Collects rows in columns, which take about 60 bytes per file; Python objects would take 250."""
    iterator = iter(rows)
    batches = []
    while chunk := list(islice(iterator, CHUNK)):
        columns = zip(*chunk, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        batches.append(pa.record_batch(arrays, schema=schema))
    return pa.Table.from_batches(batches, schema)


class Arrangement(NamedTuple):
    """Files assigned to splits and classes.

    Attributes:
        classes: Class names, sorted, or in the order that the user specified.
        splits: Per split, the files in reading order, with a column `label`: int32, -1 without a class.
        notes: Sentences about what was decided.
    """

    classes: tuple[str, ...]
    splits: dict[str, pa.Table]
    notes: tuple[str, ...]


class TableTree:
    """Folders of an archive, a `pipelines.sources.splits.FolderTree`.

    Args:
        files: Table with a column `path`.
        folders: Paths of folders, which may be empty.
    """

    def __init__(self, files: pa.Table, folders: Iterable[bytes]) -> None:
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
    """Assigns files to splits and classes by their paths, and sorts them into reading order.

    Folders inside a class folder belong to the class. Hidden files and folders are left out, and so are
    files outside of class folders, whose images are counted. A folder without any image in any split is not a
    class. Folders whose names differ only in letter case or in the Unicode form of their characters (macOS
    decomposes them) are one class.

    Files are sorted by a hash of their path: every range is a random mix of the classes, and the order is the
    same in a copy. Files with the same path keep their given order.

    Args:
        source: Name of the source for messages.
        files: Table with a column `path` (bytes, `/` between the parts) and any other columns. Files with a
            `problem` do not make their folder a class.
        split_folders: Per split, the folder of its class folders (see `pipelines.sources.splits`).
        folders: Paths of folders, which may be empty.
        class_names: Names of all classes in the order of their labels; None for those of the folders.

    Raises:
        DataError: There are fewer than two classes, the name of a class is not UTF-8 or not one of
            `class_names`, or a class has no training images.
    """
    prefixes = _build_prefixes(split_folders)
    splits = tuple(prefixes)
    split_index = np.full(len(files), -1, np.int8)
    folder_index = np.zeros(len(files), np.int32)
    path_hash = np.zeros(len(files), np.uint64)
    folder_indices: dict[bytes, int] = {}  # class folders in the order of their first file
    images: dict[bytes, Counter[str]] = {}  # images per class folder and split
    outside = 0
    is_usable = _find_usable(files)
    for row, path in enumerate(_iterate_paths(files)):
        location = _locate(path, prefixes)
        if location is None:
            outside += is_image(path) and not _is_hidden(path)
            continue
        split, folder = location
        split_index[row] = splits.index(split)
        folder_index[row] = folder_indices.setdefault(folder, len(folder_indices))
        path_hash[row] = hash_path(path)
        if is_usable[row] and is_image(path):
            images.setdefault(folder, Counter())[split] += 1

    locations = [_locate(folder + b"/", prefixes) for folder in folders]
    listed_folders = {location[1] for location in locations if location is not None}
    class_folders = find_classes(source, images, class_names)
    empty = sorted(map(os.fsdecode, (folder_indices.keys() | listed_folders) - images.keys()))
    notes = [*class_folders.notes]
    if empty:
        notes.append(f"not a class, because there are no images: {', '.join(map(repr, empty))}")
    if outside:
        notes.append(f"images outside of class folders, not read: {outside}")
    label_of_folder = np.array(
        [class_folders.labels.get(folder, -1) for folder in folder_indices] or [-1], np.int32
    )

    tables = {}
    for index, split in enumerate(splits):
        order = sort_rows(files, np.flatnonzero(split_index == index), path_hash)
        labels = pa.array(label_of_folder[folder_index[order]])
        tables[split] = files.take(order).append_column("label", labels).combine_chunks()
    return Arrangement(class_folders.names, tables, tuple(notes))


def divide_table(
    splits: Mapping[str, pa.Table], rows: Mapping[str, NDArray[np.int64]]
) -> dict[str, pa.Table]:
    """Divides the table of `train`, and leaves the other splits as they are.

    Args:
        splits: Table per split.
        rows: Per split, int64 `[n]`: rows of `train`.
    """
    divided = {split: splits["train"].take(indices).combine_chunks() for split, indices in rows.items()}
    return divided | {split: table for split, table in splits.items() if split not in rows}


def find_labels(files: pa.Table) -> NDArray[np.int32]:
    """Returns the labels of files, -1 for those whose name or problem excludes them: int32 `[n]`."""
    labels = files["label"].to_numpy().copy()
    labels[~_find_usable(files)] = -1
    for row, path in enumerate(_iterate_paths(files)):
        if not is_image(path):
            labels[row] = -1
    return labels  # type: ignore[no-any-return]


def hash_path(path: bytes) -> int:
    """Returns the 64-bit hash that determines the place of a file in the reading order."""
    return int.from_bytes(hashlib.blake2b(path, digest_size=8).digest(), "big")


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
    return os.path.splitext(path)[1].lower() in SUFFIXES


def compute_fingerprint(
    classes: tuple[str, ...], splits: Mapping[str, pa.Table], columns: Iterable[str]
) -> str:
    """Computes a digest over the classes, the path of every file, and some integer columns."""
    digest = hashlib.sha256(repr(classes).encode())
    for split, table in sorted(splits.items()):
        digest.update(repr((split, len(table))).encode())
        for batch in table.to_batches(max_chunksize=CHUNK):
            paths = batch["path"].to_pylist()
            lengths = np.array([len(path) for path in paths], "<i8")
            digest.update(lengths.tobytes() + b"".join(paths))
            for column in columns:
                digest.update(batch[column].to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    return digest.hexdigest()


def list_top_folders(files: pa.Table, folders: Iterable[bytes]) -> set[bytes]:
    """Returns the names of the folders at the top."""
    tops = {path.partition(b"/")[0] for path in _iterate_paths(files) if b"/" in path}
    return tops | {folder.partition(b"/")[0] for folder in folders}


def _iterate_paths(files: pa.Table) -> Iterator[bytes]:
    for batch in files.select(["path"]).to_batches(max_chunksize=CHUNK):
        yield from batch["path"].to_pylist()


def _find_usable(files: pa.Table) -> NDArray[np.bool_]:
    """Returns whether each file can be read, as far as its entry says: bool `[n]`."""
    if "problem" not in files.column_names:
        return np.ones(len(files), bool)
    is_usable: NDArray[np.bool_] = pc.is_null(files["problem"]).to_numpy()
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
