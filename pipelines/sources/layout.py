"""How files in folders become splits, classes and one fixed order: the same for a folder and for an archive of it."""

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
VALIDATION_FOLDERS = (b"validation", b"val", b"test")  # the first that is there becomes the validation split
LAYOUT = "arrange the images as DIR/CLASS/IMAGE or DIR/train/CLASS/IMAGE"
PATH, SIZE = pa.field("path", pa.large_binary(), nullable=False), pa.field("size", pa.int64(), nullable=False)
CHUNK = 65536  # rows that stand in memory as Python objects at a time

logger = logging.getLogger(__name__)


def build_table(rows: Iterable[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Gathers rows into columns: some 60 bytes for a file, where objects would take 250."""
    batches, rows = [], iter(rows)
    while part := list(islice(rows, CHUNK)):
        columns = [
            pa.array(column, field.type)
            for column, field in zip(zip(*part, strict=True), schema, strict=True)
        ]
        batches.append(pa.record_batch(columns, schema=schema))
    return pa.Table.from_batches(batches, schema)


def arrange_files(
    source: str, files: pa.Table, folders: Collection[bytes] = ()
) -> tuple[tuple[str, ...], dict[str, pa.Table]]:
    """Sorts files into splits and classes by their paths, and into the order in which they are read.

    With a folder `train` at the top, that is the train split, and `validation` (else `val`, else `test`) the
    validation split; otherwise everything is `train`. Folders inside a class folder belong to the class. Hidden files
    and folders, and files outside of class folders, are left out. A class folder without a single image, in all
    splits, is no class.

    Files come in the order of a hash of their path: every range is a random mix of the classes, and stays the same in
    a copy. Files of the same path stay in the order in which they were given.

    Args:
        source: What the user asked for, for messages.
        files: `path` (bytes, `/` between the parts), and any other columns.
        folders: Paths of folders that may be empty.

    Returns:
        The class names, sorted; and per split the rows of `files` in reading order, with a column `label`: int32, -1
        for a file of no class.

    Raises:
        DataError: There are fewer than two classes, or the name of one is not UTF-8.
    """
    splits = _split_folders(files, folders)
    prefixes = tuple(splits.values())
    split, group = np.full(len(files), -1, np.int8), np.zeros(len(files), np.int32)
    digest = np.zeros(len(files), np.uint64)
    groups: dict[bytes, int] = {}  # class folders, numbered as they are met
    pictured = set()
    for row, path in enumerate(_each(files)):
        if found := _place(path, prefixes):
            split[row], folder = found
            group[row] = groups.setdefault(folder, len(groups))
            digest[row] = int.from_bytes(hashlib.blake2b(path, digest_size=8).digest(), "big")
            if folder not in pictured and is_image(path):
                pictured.add(folder)
    also = {found[1] for folder in folders if (found := _place(folder + b"/", prefixes))}
    classes = _classes(source, pictured, groups.keys() | also)
    numbers = {os.fsencode(name): label for label, name in enumerate(classes)}
    labels = np.array([numbers.get(name, -1) for name in groups], np.int32)
    tables = {}
    for code, name in enumerate(splits):
        order = _ordered(files, np.flatnonzero(split == code), digest)
        tables[name] = (
            files.take(order).append_column("label", pa.array(labels[group[order]])).combine_chunks()
        )
    return classes, tables


def reject_by_name(path: bytes) -> Rejected | None:
    """A file that cannot be an image, going by its name."""
    try:
        name = path.decode()
    except UnicodeDecodeError:
        return Rejected(path.decode("utf-8", "backslashreplace"), "the name is not UTF-8")
    return (
        None
        if is_image(path)
        else Rejected(name, f"not an image suffix: {os.path.splitext(name)[1] or 'none'}")
    )


def is_image(path: bytes) -> bool:
    """Whether a path ends like an image."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def compute_fingerprint(classes: tuple[str, ...], splits: Mapping[str, pa.Table], columns: Iterable[str]) -> str:
    """A digest over the classes, the path of every file and some whole-number columns."""
    digest = hashlib.sha256(repr(classes).encode())
    for split, table in sorted(splits.items()):
        digest.update(repr((split, len(table))).encode())
        for batch in table.to_batches(max_chunksize=CHUNK):
            paths = batch["path"].to_pylist()
            digest.update(np.array([len(path) for path in paths], "<i8").tobytes() + b"".join(paths))
            for column in columns:
                digest.update(batch[column].to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    return digest.hexdigest()


def list_top_folders(files: pa.Table, folders: Iterable[bytes]) -> set[bytes]:
    """Names of the folders at the top."""
    return {path.partition(b"/")[0] for path in _each(files) if b"/" in path} | {
        folder.partition(b"/")[0] for folder in folders
    }


def _each(files: pa.Table) -> Iterator[bytes]:
    for batch in files.select(["path"]).to_batches(max_chunksize=CHUNK):
        yield from batch["path"].to_pylist()


def _split_folders(files: pa.Table, folders: Iterable[bytes]) -> dict[str, bytes]:
    """Per split, what the paths of its files begin with."""
    there = list_top_folders(files, folders)
    if b"train" not in there:
        return {"train": b""}
    held_out = [name + b"/" for name in VALIDATION_FOLDERS if name in there]
    return {"train": b"train/"} | ({"validation": held_out[0]} if held_out else {})


def _place(path: bytes, prefixes: tuple[bytes, ...]) -> tuple[int, bytes] | None:
    """Index of a file's split and name of its class folder."""
    for code, prefix in enumerate(prefixes):
        if path.startswith(prefix):
            name, slash, _ = path[len(prefix) :].partition(b"/")
            hidden = path.startswith(b".", len(prefix)) or path.find(b"/.", len(prefix)) >= 0
            return (code, name) if slash and not hidden else None
    return None


def _classes(source: str, pictured: Iterable[bytes], found: Iterable[bytes]) -> tuple[str, ...]:
    classes = tuple(sorted(map(os.fsdecode, pictured)))
    if len(classes) < 2:
        raise DataError(
            "images of at least two classes",
            f"source={source}: classes={', '.join(classes) or 'none'}",
            LAYOUT,
        )
    if foreign := [name for name in classes if name.encode("utf-8", "replace") != os.fsencode(name)]:
        raise DataError(
            "class folders named in UTF-8", f"source={source}: class={foreign[0]!r}", "rename the folder"
        )
    if empty := sorted(set(map(os.fsdecode, found)) - set(classes)):
        logger.warning("no class, because without images: %s", ", ".join(map(repr, empty)))
    return classes


def _ordered(files: pa.Table, rows: NDArray[np.int64], digest: NDArray[np.uint64]) -> NDArray[np.int64]:
    keys = pa.table({"digest": digest[rows], "path": files["path"].take(rows), "row": rows})
    order: NDArray[np.uint64] = pc.sort_indices(
        keys, [(name, "ascending") for name in keys.column_names]
    ).to_numpy()
    return rows[order]
