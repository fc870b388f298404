"""Images in one folder per class: `DIR/CLASS/*`, or `DIR/SPLIT/CLASS/*`."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.errors import ConfigError, DataError
from pipelines.records import Example, Rejected
from pipelines.remote.uri import Uri, is_uri
from pipelines.sources.base import SOURCES, build_change_error, build_listing_error
from pipelines.sources.layout import (
    MAX_FILE,
    PATH,
    SIZE,
    arrange_batches,
    build_batches,
    build_table,
    compute_fingerprint,
    divide_table,
    find_labels,
    is_image,
    reject_by_name,
)
from pipelines.sources.listing import TablePart
from pipelines.sources.locations import parse_source_location
from pipelines.sources.options import SourceOptions
from pipelines.sources.splits import FolderTree, find_split_folders
from pipelines.sources.store_folder import SCHEMA as STORE_SCHEMA
from pipelines.sources.store_folder import STAMP, StoreTree, iterate_store_files, read_objects

SCHEMA = pa.schema([PATH, SIZE])
FOLDER_SCHEMA = pa.schema([PATH, pa.field("modified", pa.int64(), nullable=False)])
LISTING_THREADS = 16  # a file server takes milliseconds to list a folder
QUEUED_BATCHES = 32

# Errors that mean that a file, or the file server, has disappeared.
GONE = (errno.ENOENT, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN)


@dataclass(frozen=True)
class FolderSource:
    """A folder of images, opened by `open_folder`. Every worker must see it under the same path.

    Attributes:
        name: Name of the source, `folder:DIR`.
        classes: Names of the class folders, sorted.
        root: Absolute path or URI of the folder.
        splits: Per split, a table of all files in reading order: `path` inside the folder, `size` in bytes,
            `label`, and for objects of a store `stamp`, a hash of the version.
        notes: Sentences about what was decided.
        folders: Folders that were listed on a disk, with the columns of `FOLDER_SCHEMA`.
    """

    name: str
    classes: tuple[str, ...]
    root: str
    splits: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    folders: pa.Table = field(default_factory=lambda: FOLDER_SCHEMA.empty_table())

    def counts(self) -> Mapping[str, int]:
        """Returns the number of files per split, whatever their suffix."""
        return {split: len(files) for split, files in self.splits.items()}

    def read(self, split: str, start: int, stop: int) -> Iterator[Example | Rejected]:
        """Yields files `start` to `stop` of a split.

        Raises:
            DataError: A file has disappeared since the folder was listed.
        """
        files = self.splits[split].slice(start, stop - start)
        if is_uri(self.root):
            yield from read_objects(self.root, files.to_pylist())
            return
        columns = [files[name].to_pylist() for name in ("path", "label", "size")]
        for path, label, size in zip(*columns, strict=True):
            rejected = reject_by_name(path)
            if rejected is not None:
                yield rejected
            else:
                yield read_file(os.path.join(os.fsencode(self.root), path), path.decode(), label, size)

    def labels(self, split: str) -> NDArray[np.int32]:
        """Returns the label of every file, -1 if it is not an image: int32 `[n]`."""
        return find_labels(self.splits[split])

    def divide(self, is_held_out: NDArray[np.bool_], note: str) -> FolderSource:
        """Returns the source with some files of the train split as validation split: bool `[n]`."""
        return replace(self, splits=divide_table(self.splits, is_held_out), notes=(*self.notes, note))

    def select(self, split: str, start: int, stop: int) -> FolderSource:
        """Returns a small source that reads only some files of a split, under the same numbers."""
        part = TablePart(self.splits[split], start, stop)
        return replace(self, splits={split: part}, notes=(), folders=FOLDER_SCHEMA.empty_table())

    def check_unchanged(self) -> None:
        """Makes sure that no file was added to a folder or removed from it since it was listed.

        Reading compares the size of every file with the list, and of an object also its version. A store is
        not listed again.

        Raises:
            DataError: A folder has changed.
        """
        for batch in self.folders.to_batches():
            for path, modified in zip(batch["path"].to_pylist(), batch["modified"].to_pylist(), strict=True):
                if _get_modification_time(path) != modified:
                    raise build_change_error(f"{self.name}: {os.fsdecode(path)}")

    def fingerprint(self) -> str:
        """Returns a digest over the path and the size of every file.

        It changes if files were added, removed, renamed, moved to another class or changed in size, and is
        the same for a copy of the folder. It does not detect changes that keep the size. For objects of a
        store it also covers their etags, and so detects every change; copies may have other etags.
        """
        columns = ["size", STAMP.name] if is_uri(self.root) else ["size"]
        return compute_fingerprint(self.classes, self.splits, columns)


class DirectoryTree:
    """Folders of a directory, a `pipelines.sources.splits.FolderTree`. Links to folders are followed.

    Args:
        root: Absolute path of the directory.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real_root = root.resolve()

    def list_folders(self, path: str) -> list[str]:
        """Returns the names of the folders directly inside a folder, sorted."""
        folder = self._root / path
        if not folder.is_dir():
            return []
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
        return sorted(name for name in names if self._is_below(folder / name))

    def has_images(self, path: str) -> bool:
        """Tells whether there are images directly inside a folder."""
        return self.count_images(path, limit=1) > 0

    def count_images(self, path: str, limit: int | None = None) -> int:
        """Returns the number of images directly inside a folder, at most `limit`."""
        images = 0
        with os.scandir(self._root / path) as entries:
            for entry in entries:
                is_hidden = entry.name.startswith(".")
                images += not is_hidden and is_image(os.fsencode(entry.name)) and not entry.is_dir()
                if images == limit:
                    break
        return images

    def _is_below(self, folder: Path) -> bool:
        return not self._real_root.is_relative_to(folder.resolve())  # no link to a parent folder


@SOURCES.register("folder")
def open_folder(argument: str, options: SourceOptions | None = None) -> FolderSource:
    """Lists a folder of images; `pipelines.sources.splits` and `layout.arrange_files` describe its layout.

    Links to files are followed, links to folders only if they are split or class folders.

    Args:
        argument: Path of the folder, or its URI in an object store.
        options: Splits and class names that the user specified.

    Raises:
        ConfigError: There is no such folder, or `splits` names one that does not exist.
        DataError: The folder cannot be listed or understood, or holds fewer than two classes.
    """
    options = options or SourceOptions()
    root = parse_source_location("folder", argument)
    if isinstance(root, Uri):
        return _open_store_folder(root, argument, options)
    if not root.is_dir():
        raise ConfigError("a folder", f"source=folder:{argument} (no such folder)", "check the path")
    tree = DirectoryTree(root)
    try:
        layout = find_split_folders(f"folder:{argument}", tree, options.splits, options.needs_train)
        split_folders = list(dict.fromkeys(layout.folders.values()))
        class_folders: list[Path] = [
            root / folder / name for folder in split_folders for name in tree.list_folders(folder)
        ]
        outside = sum(tree.count_images(folder) for folder in dict.fromkeys(["", *split_folders]))
        names = [os.fsencode(folder.relative_to(root)) for folder in class_folders]
        walk = ParallelWalk(os.fsencode(root), map(os.fsencode, class_folders))
        arrangement = arrange_batches(
            argument, walk.iterate_batches(), SCHEMA, layout.folders, names, options.class_names
        )
    except OSError as error:
        raise build_listing_error(error) from None
    except DataError as error:
        raise _suggest_subfolder(error, argument, tree) from None
    notes = [*layout.describe(), *arrangement.notes]
    if outside:
        notes.append(f"images outside of class folders, not read: {outside}")
    return FolderSource(
        f"folder:{argument}",
        arrangement.classes,
        str(root),
        arrangement.splits,
        tuple(notes),
        build_table(sorted(walk.folders), FOLDER_SCHEMA),
    )


def _open_store_folder(root: Uri, argument: str, options: SourceOptions) -> FolderSource:
    """Lists a folder of an object store, with the same rules as for a directory.

    Raises:
        ConfigError: There is nothing below the folder, or `splits` names one that does not exist.
        DataError: The folder cannot be understood, or holds fewer than two classes.
    """
    name = f"folder:{argument}"
    tree = StoreTree(root)
    if not tree.list_folders("") and not tree.has_images(""):
        raise ConfigError("a folder with images", f"source={name} (no objects below it)", "check the address")
    layout = find_split_folders(name, tree, options.splits, options.needs_train)
    split_folders = list(dict.fromkeys(layout.folders.values()))
    class_folders: list[Uri] = []
    for split_folder in split_folders:
        start = f"{split_folder}/" if split_folder else ""
        class_folders.extend(root / f"{start}{folder}" for folder in tree.list_folders(split_folder))
    batches = iterate_store_files(root, class_folders)
    try:
        arrangement = arrange_batches(
            argument, batches, STORE_SCHEMA, layout.folders, (), options.class_names
        )
    except DataError as error:
        raise _suggest_subfolder(error, argument, tree) from None
    notes = [*layout.describe(), *arrangement.notes]
    outside = sum(tree.count_images(folder) for folder in dict.fromkeys(["", *split_folders]))
    if outside:
        notes.append(f"images outside of class folders, not read: {outside}")
    return FolderSource(name, arrangement.classes, str(root), arrangement.splits, tuple(notes))


def _suggest_subfolder(error: DataError, argument: str, tree: FolderTree) -> DataError:
    """Returns the error with a better fix if all images are in the only folder at the top."""
    names = tree.list_folders("")
    if len(names) == 1 and tree.list_folders(names[0]) and not tree.has_images(names[0]):
        return DataError(error.expected, error.received, f"write folder:{argument.rstrip('/')}/{names[0]}")
    return error


class ParallelWalk:
    """Lists the files below some folders, several folders at a time, except hidden ones.

    Args:
        root: Absolute path that the paths of files are relative to.
        folders: Absolute paths of the folders.

    Attributes:
        folders: Path and time of change of every folder listed so far.
    """

    def __init__(self, root: bytes, folders: Iterable[bytes]) -> None:
        self.folders: list[tuple[bytes, int]] = []
        self._prefix = len(os.path.join(root, b""))
        self._waiting = list(folders)

    def iterate_batches(self) -> Iterator[pa.RecordBatch]:
        """Yields path and size of all files, with the columns of `SCHEMA`. Can be called once.

        Raises:
            OSError: A folder cannot be listed.
        """
        results: queue.Queue[_Listed | OSError] = queue.Queue(QUEUED_BATCHES)
        stop = threading.Event()
        with ThreadPoolExecutor(LISTING_THREADS, "listing") as pool:
            try:
                running = 0
                while running or self._waiting:
                    while self._waiting and running < 2 * LISTING_THREADS:
                        pool.submit(self._list_folder, self._waiting.pop(), results, stop)
                        running += 1
                    listed = results.get()
                    if isinstance(listed, OSError):
                        raise listed
                    self._waiting.extend(listed.subfolders)
                    running -= listed.is_last
                    if listed.batch is not None:
                        yield listed.batch
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                _drain(results)

    def _list_folder(
        self, folder: bytes, results: queue.Queue[_Listed | OSError], stop: threading.Event
    ) -> None:
        try:
            self.folders.append((folder, os.stat(folder).st_mtime_ns))
            prefix = os.path.join(folder, b"")[self._prefix :]
            subfolders: list[bytes] = []
            with os.scandir(folder) as entries:
                rows = _iterate_files(entries, prefix, subfolders)
                for batch in build_batches(rows, SCHEMA):
                    if stop.is_set():
                        return
                    results.put(_Listed(batch, [], is_last=False))
            results.put(_Listed(None, subfolders, is_last=True))
        except OSError as error:
            results.put(error)


class _Listed(NamedTuple):
    """Result of listing a part of a folder.

    Attributes:
        batch: Files, with the columns of `SCHEMA`.
        subfolders: Folders to list as well.
        is_last: Whether the folder is listed completely.
    """

    batch: pa.RecordBatch | None
    subfolders: list[bytes]
    is_last: bool


def _iterate_files(
    entries: Iterable[os.DirEntry[bytes]], prefix: bytes, subfolders: list[bytes]
) -> Iterator[tuple[bytes, int]]:
    """Yields path and size of the visible files in a folder, and adds its visible subfolders to a list."""
    for entry in entries:
        name = entry.name
        if name.startswith(b"."):
            continue
        if not entry.is_dir():
            yield prefix + name, _get_size(entry)
        elif not entry.is_symlink():
            subfolders.append(entry.path)


def _drain(results: queue.Queue[_Listed | OSError]) -> None:
    """Makes room in a queue, so that threads that wait for it end."""
    with contextlib.suppress(queue.Empty):
        while True:
            results.get_nowait()


def list_files(root: Path) -> pa.Table:
    """Lists path and size of the files below a folder, except hidden ones, in memory and in no order.

    Raises:
        OSError: A folder cannot be listed.
    """
    walk = ParallelWalk(os.fsencode(root), [os.fsencode(root)])
    return pa.Table.from_batches(list(walk.iterate_batches()), SCHEMA)


def _get_size(entry: os.DirEntry[bytes]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a broken link, which is rejected when it is read
        return -1


def _get_modification_time(folder: bytes) -> int | None:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None


def read_file(path: bytes, identifier: str, label: int, size: int) -> Example | Rejected:
    """Reads one image file.

    Args:
        path: Path of the file.
        identifier: Name of the image in its source.
        label: Index of its class.
        size: Size in bytes when the file was listed, -1 for a broken link.

    Raises:
        DataError: The file has disappeared since it was listed, or has another size now.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # else opening a pipe would wait for a writer
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return Rejected(identifier, "not a regular file")
            if status.st_size > MAX_FILE:
                return Rejected(identifier, f"larger than {MAX_FILE >> 20} MiB: {status.st_size} bytes")
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read()
        finally:
            os.close(descriptor)
    except OSError as error:
        if size >= 0 and error.errno in GONE:
            raise DataError(
                "a folder that does not change while it is read",
                f"{os.fsdecode(path)}: {error.strerror}",
                "make sure that the folder is available and nothing changes it, then start again",
            ) from None
        return Rejected(identifier, f"cannot be read: {error.strerror}")
    if size >= 0 and len(content) != size:
        raise build_change_error(f"{os.fsdecode(path)}: bytes={len(content)}, before {size}")
    return Example(content, label, identifier)
