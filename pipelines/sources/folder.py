"""Images in one folder per class: `DIR/<class>/*`, or `DIR/train/<class>/*` beside `DIR/validation/<class>/*`."""

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
from pipelines.sources import SOURCES
from pipelines.sources.layout import (
    PATH,
    SIZE,
    VALIDATION_FOLDERS,
    arrange_files,
    build_table,
    compute_fingerprint,
    reject_by_name,
)

GONE = (errno.ENOENT, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN)  # a file, or the file server


@dataclass(frozen=True)
class FolderSource:
    """A folder of images. Made by `open_folder`; reading it needs the folder to be seen from where it is read.

    Attributes:
        name: `folder:DIR`.
        classes: Names of the class folders, sorted.
        root: Absolute path of the folder.
        splits: Per split, every file in reading order: `path` inside the folder, `size` in bytes and `label`.
    """

    name: str
    classes: tuple[str, ...]
    root: str
    splits: Mapping[str, pa.Table]

    def counts(self) -> Mapping[str, int]:
        """Number of files per split, whatever their suffix."""
        return {split: len(files) for split, files in self.splits.items()}

    def read(self, split: str, start: int, stop: int) -> Iterator[Example | Rejected]:
        """Yields files `start` to `stop` of a split."""
        files = self.splits[split].slice(start, stop - start)
        columns = (files[name].to_pylist() for name in ("path", "label", "size"))
        for path, label, size in zip(*columns, strict=True):
            yield reject_by_name(path) or _read(
                os.path.join(os.fsencode(self.root), path), path.decode(), label, size
            )

    def compute_fingerprint(self) -> str:
        """A digest over the path and the size of every file.

        It notices files that were added, removed, renamed, moved to another class or changed in size, and is the
        same for a copy of the folder. It does not notice a change that keeps the size.
        """
        return compute_fingerprint(self.classes, self.splits, ["size"])


@SOURCES.register("folder")
def open_folder(argument: str) -> FolderSource:
    """Lists a folder of images, laid out and ordered as `pipelines.sources.layout.arrange_files` says.

    Links to files are followed, links to folders only where they stand for a class.

    Raises:
        ConfigError: There is no such folder.
        DataError: It cannot be listed, or holds fewer than two classes.
    """
    root = Path(argument).expanduser().absolute()
    if not root.is_dir():
        raise ConfigError("a folder", f"source=folder:{argument} (no such folder)", "check the path")
    try:
        splits = _split_folders(root)
        folders = [folder for split in splits for folder in _class_folders(root, split)]
        files = build_table(
            (file for folder in folders for file in walk_files(os.fsencode(root), os.fsencode(folder))),
            pa.schema([PATH, SIZE]),
        )
    except OSError as error:
        raise DataError(
            "a folder that can be listed", f"{error.filename}: {error.strerror}", "change its permissions"
        ) from None
    names = [os.fsencode(folder.relative_to(root)) for folder in (*splits, *folders) if folder != root]
    classes, tables = arrange_files(argument, files, names)
    return FolderSource(f"folder:{argument}", classes, str(root), tables)


def _split_folders(root: Path) -> list[Path]:
    """What has to be listed."""
    if not (root / "train").is_dir():
        return [root]
    return [
        root / "train",
        *[root / os.fsdecode(name) for name in VALIDATION_FOLDERS if (root / os.fsdecode(name)).is_dir()][:1],
    ]


def _class_folders(root: Path, split: Path) -> list[Path]:
    folders = [path for path in split.iterdir() if path.is_dir() and not path.name.startswith(".")]
    here = root.resolve()
    return [path for path in folders if not here.is_relative_to(path.resolve())]  # no link upwards


def walk_files(root: bytes, folder: bytes) -> Iterator[tuple[bytes, int]]:
    """Path and size of every file of a class folder."""

    def fail(error: OSError) -> None:
        raise error

    start = len(os.path.join(root, b""))
    for directory, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(b".")]
        for name in names:
            if not name.startswith(b"."):
                path = os.path.join(directory, name)
                yield path[start:], _size(path)


def _size(path: bytes) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a broken link: reading it says so
        return -1


def _read(path: bytes, identifier: str, label: int, size: int) -> Example | Rejected:
    try:
        descriptor = os.open(
            path, os.O_RDONLY | os.O_NONBLOCK
        )  # opening a pipe would wait for ever otherwise
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return Rejected(identifier, "not a regular file")
            with open(descriptor, "rb", closefd=False) as file:
                return Example(file.read(), label, identifier)
        finally:
            os.close(descriptor)
    except OSError as error:
        if size >= 0 and error.errno in GONE:
            fix = "see that the folder is there and nothing changes it, then start again"
            raise DataError(
                "a folder that stays as it was listed", f"{os.fsdecode(path)}: {error.strerror}", fix
            ) from None
        return Rejected(identifier, f"cannot be read: {error.strerror}")
