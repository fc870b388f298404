"""Images in one folder per class: `DIR/CLASS/*`, or `DIR/train/CLASS/*` and `DIR/validation/CLASS/*`."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipelines.errors import ConfigError, DataError
from pipelines.records import Example, Rejected
from pipelines.sources.base import SOURCES
from pipelines.sources.layout import (
    PATH,
    SIZE,
    VALIDATION_FOLDERS,
    arrange_files,
    build_table,
    compute_fingerprint,
    reject_by_name,
)

# Errors that mean that a file, or the file server, has disappeared.
GONE = (errno.ENOENT, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN)


@dataclass(frozen=True)
class FolderSource:
    """A folder of images, opened by `open_folder`. Every worker must see it under the same path.

    Attributes:
        name: Name of the source, `folder:DIR`.
        classes: Names of the class folders, sorted.
        root: Absolute path of the folder.
        splits: Per split, a table of all files in reading order: `path` inside the folder, `size` in bytes
            and `label`.
    """

    name: str
    classes: tuple[str, ...]
    root: str
    splits: Mapping[str, pa.Table]

    def counts(self) -> Mapping[str, int]:
        """Returns the number of files per split, whatever their suffix."""
        return {split: len(files) for split, files in self.splits.items()}

    def read(self, split: str, start: int, stop: int) -> Iterator[Example | Rejected]:
        """Yields files `start` to `stop` of a split.

        Raises:
            DataError: A file has disappeared since the folder was listed.
        """
        files = self.splits[split].slice(start, stop - start)
        columns = [files[name].to_pylist() for name in ("path", "label", "size")]
        for path, label, size in zip(*columns, strict=True):
            rejected = reject_by_name(path)
            if rejected is not None:
                yield rejected
            else:
                yield _read(os.path.join(os.fsencode(self.root), path), path.decode(), label, size)

    def fingerprint(self) -> str:
        """Returns a digest over the path and the size of every file.

        It changes if files were added, removed, renamed, moved to another class or changed in size, and is
        the same for a copy of the folder. It does not detect changes that keep the size.
        """
        return compute_fingerprint(self.classes, self.splits, ["size"])


@SOURCES.register("folder")
def open_folder(argument: str) -> FolderSource:
    """Lists a folder of images; `pipelines.sources.layout.arrange_files` describes its layout and order.

    Links to files are followed, links to folders only if they are class folders.

    Args:
        argument: Path of the folder.

    Raises:
        ConfigError: There is no such folder.
        DataError: The folder cannot be listed, or holds fewer than two classes.
    """
    root = Path(argument).expanduser().absolute()
    if not root.is_dir():
        raise ConfigError("a folder", f"source=folder:{argument} (no such folder)", "check the path")
    try:
        split_folders = _list_split_folders(root)
        class_folders = [folder for split in split_folders for folder in _list_class_folders(root, split)]
        files = build_table(_walk_all(root, class_folders), pa.schema([PATH, SIZE]))
    except OSError as error:
        received = f"{error.filename}: {error.strerror}"
        raise DataError("a folder that can be listed", received, "change its permissions") from None
    folders = [folder for folder in (*split_folders, *class_folders) if folder != root]
    names = [os.fsencode(folder.relative_to(root)) for folder in folders]
    classes, splits = arrange_files(argument, files, names)
    return FolderSource(f"folder:{argument}", classes, str(root), splits)


def walk_files(root: bytes, folder: bytes) -> Iterator[tuple[bytes, int]]:
    """Yields the path inside `root` and the size of every file below a folder, except hidden ones.

    Raises:
        OSError: A folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    start = len(os.path.join(root, b""))
    for directory, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(b".")]
        for name in names:
            if not name.startswith(b"."):
                path = os.path.join(directory, name)
                yield path[start:], _get_size(path)


def _walk_all(root: Path, folders: list[Path]) -> Iterator[tuple[bytes, int]]:
    for folder in folders:
        yield from walk_files(os.fsencode(root), os.fsencode(folder))


def _list_split_folders(root: Path) -> list[Path]:
    """Returns the folders that hold class folders."""
    if not (root / "train").is_dir():
        return [root]
    for name in VALIDATION_FOLDERS:
        validation = root / os.fsdecode(name)
        if validation.is_dir():
            return [root / "train", validation]
    return [root / "train"]


def _list_class_folders(root: Path, split: Path) -> list[Path]:
    folders = [path for path in split.iterdir() if path.is_dir() and not path.name.startswith(".")]
    top = root.resolve()
    return [path for path in folders if not top.is_relative_to(path.resolve())]  # no link to a parent folder


def _get_size(path: bytes) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a broken link, which is rejected when it is read
        return -1


def _read(path: bytes, identifier: str, label: int, size: int) -> Example | Rejected:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # else opening a pipe would wait for a writer
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return Rejected(identifier, "not a regular file")
            with open(descriptor, "rb", closefd=False) as file:
                return Example(file.read(), label, identifier)
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
