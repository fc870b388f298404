"""Derives splits, classes and a fixed order from the paths of files, in a folder or an archive alike."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.errors import DataError
from pipelines.records import Rejected

SUFFIXES = frozenset({b".jpg", b".jpeg", b".png", b".bmp", b".gif", b".webp"})
VALIDATION_FOLDERS = (b"validation", b"val", b"test")  # the first that exists is the validation split
LAYOUT_FIX = "arrange the images as DIR/CLASS/IMAGE or DIR/train/CLASS/IMAGE"
PATH = pa.field("path", pa.large_binary(), nullable=False)
SIZE = pa.field("size", pa.int64(), nullable=False)
CHUNK = 65536  # rows converted to Python objects at a time

logger = logging.getLogger(__name__)


def build_table(rows: Iterable[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Collects rows in columns, which take about 60 bytes per file; Python objects would take 250."""
    iterator = iter(rows)
    batches = []
    while chunk := list(islice(iterator, CHUNK)):
        columns = zip(*chunk, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        batches.append(pa.record_batch(arrays, schema=schema))
    return pa.Table.from_batches(batches, schema)


def arrange_files(
    source: str, files: pa.Table, folders: Collection[bytes] = ()
) -> tuple[tuple[str, ...], dict[str, pa.Table]]:
    """Assigns files to splits and classes by their paths, and sorts them into reading order.

    A folder `train` at the top is the train split, and `validation` (else `val`, else `test`) the validation
    split; without one, all files are in `train`. Folders inside a class folder belong to the class. Hidden
    files and folders are left out, and so are files outside of class folders. A folder without any image in
    any split is not a class.

    Files are sorted by a hash of their path: every range is a random mix of the classes, and the order is the
    same in a copy. Files with the same path keep their given order.

    Args:
        source: Name of the source for messages.
        files: Table with a column `path` (bytes, `/` between the parts) and any other columns.
        folders: Paths of folders, which may be empty.

    Returns:
        The class names, sorted; and per split the rows of `files` in reading order, with a column `label`:
        int32, -1 for a file without a class.

    Raises:
        DataError: There are fewer than two classes, or the name of a class is not UTF-8.
    """
    prefixes = _find_split_prefixes(files, folders)
    splits = tuple(prefixes)
    split_index = np.full(len(files), -1, np.int8)
    folder_index = np.zeros(len(files), np.int32)
    path_hash = np.zeros(len(files), np.uint64)
    folder_indices: dict[bytes, int] = {}  # class folders in the order of their first file
    folders_with_images: set[bytes] = set()
    for row, path in enumerate(_iterate_paths(files)):
        location = _locate(path, prefixes)
        if location is None:
            continue
        split, folder = location
        split_index[row] = splits.index(split)
        folder_index[row] = folder_indices.setdefault(folder, len(folder_indices))
        path_hash[row] = int.from_bytes(hashlib.blake2b(path, digest_size=8).digest(), "big")
        if folder not in folders_with_images and is_image(path):
            folders_with_images.add(folder)

    locations = [_locate(folder + b"/", prefixes) for folder in folders]
    listed_folders = {location[1] for location in locations if location is not None}
    classes = _find_classes(source, folders_with_images, folder_indices.keys() | listed_folders)
    label_of_class = {os.fsencode(name): label for label, name in enumerate(classes)}
    label_of_folder = np.array([label_of_class.get(folder, -1) for folder in folder_indices], np.int32)

    tables = {}
    for index, split in enumerate(splits):
        order = _sort_rows(files, np.flatnonzero(split_index == index), path_hash)
        labels = pa.array(label_of_folder[folder_index[order]])
        tables[split] = files.take(order).append_column("label", labels).combine_chunks()
    return classes, tables


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


def _find_split_prefixes(files: pa.Table, folders: Iterable[bytes]) -> dict[str, bytes]:
    """Returns, per split, the prefix of the paths of its files."""
    tops = list_top_folders(files, folders)
    if b"train" not in tops:
        return {"train": b""}
    prefixes = {"train": b"train/"}
    for name in VALIDATION_FOLDERS:
        if name in tops:
            prefixes["validation"] = name + b"/"
            break
    return prefixes


def _locate(path: bytes, prefixes: Mapping[str, bytes]) -> tuple[str, bytes] | None:
    """Returns the split of a file and the name of its class folder; None if it is in neither or hidden."""
    for split, prefix in prefixes.items():
        if path.startswith(prefix):
            folder, slash, _ = path[len(prefix) :].partition(b"/")
            is_hidden = path.startswith(b".", len(prefix)) or path.find(b"/.", len(prefix)) >= 0
            return (split, folder) if slash and not is_hidden else None
    return None


def _find_classes(
    source: str, folders_with_images: Iterable[bytes], folders: Iterable[bytes]
) -> tuple[str, ...]:
    classes = tuple(sorted(map(os.fsdecode, folders_with_images)))
    if len(classes) < 2:
        received = f"source={source}: classes={', '.join(classes) or 'none'}"
        raise DataError("images of at least two classes", received, LAYOUT_FIX)
    for name in classes:
        if name.encode("utf-8", "replace") != os.fsencode(name):
            received = f"source={source}: class={name!r}"
            raise DataError("class folders named in UTF-8", received, "rename the folder")
    empty = sorted(set(map(os.fsdecode, folders)) - set(classes))
    if empty:
        logger.warning("not a class, because there are no images: %s", ", ".join(map(repr, empty)))
    return classes


def _sort_rows(files: pa.Table, rows: NDArray[np.int64], path_hash: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Sorts rows by the hash of their path, then by path and row."""
    keys = pa.table({"hash": path_hash[rows], "path": files["path"].take(rows), "row": rows})
    sort_keys = [(name, "ascending") for name in keys.column_names]
    order: NDArray[np.uint64] = pc.sort_indices(keys, sort_keys).to_numpy()
    return rows[order]
