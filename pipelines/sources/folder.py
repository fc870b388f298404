"""Images in one folder per class: `DIR/<class>/*`, or `DIR/train/<class>/*` beside `DIR/validation/<class>/*`."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipelines.errors import ConfigError, DataError
from pipelines.records import Example, Rejected
from pipelines.sources import SOURCES

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"})
HELD_OUT = ("validation", "val", "test")  # the first that is there becomes the validation split
LAYOUT = "arrange the images as DIR/CLASS/IMAGE or DIR/train/CLASS/IMAGE"

logger = logging.getLogger(__name__)


class Candidate(NamedTuple):
    """A file of a class folder: its path inside the source (`/` between the parts), its class and its size in bytes."""

    path: str
    label: int
    size: int


@dataclass(frozen=True)
class FolderSource:
    """A folder of images. Made by `open_folder`; reading it needs the folder to be seen from where it is read.

    Attributes:
        name: `folder:DIR`.
        classes: Names of the class folders, sorted.
        root: Absolute path of the folder.
        splits: Per split, every file in reading order.
    """

    name: str
    classes: tuple[str, ...]
    root: str
    splits: Mapping[str, tuple[Candidate, ...]]

    def counts(self) -> Mapping[str, int]:
        """Number of files per split, whatever their suffix."""
        return {split: len(files) for split, files in self.splits.items()}

    def read(self, split: str, start: int, stop: int) -> Iterator[Example | Rejected]:
        """Yields files `start` to `stop` of a split.

        Files come in the order of a hash of their path: every range is a random mix of the classes,
        and stays the same in a copy of the folder.
        """
        for candidate in self.splits[split][start:stop]:
            yield _read(self.root, candidate)

    def fingerprint(self) -> str:
        """A digest over the path and the size of every file.

        It notices files that were added, removed, renamed, moved to another class or changed in size, and is the
        same for a copy of the folder. It does not notice a change that keeps the size.
        """
        digest = hashlib.sha256(repr(self.classes).encode())
        for split, files in sorted(self.splits.items()):
            digest.update(repr((split, [(file.path, file.size) for file in files])).encode())
        return digest.hexdigest()


@SOURCES.register("folder")
def open_folder(argument: str) -> FolderSource:
    """Lists a folder of images.

    With a folder `train` inside, that is the train split, and `validation` (else `val`, else `test`) the validation
    split; otherwise everything is `train`. Folders inside a class folder belong to the class. Hidden files and
    folders are ignored, links to files are followed, links to folders only where they stand for a class. A class
    folder without a single image, in all splits, is no class.

    Raises:
        ConfigError: There is no such folder.
        DataError: It cannot be listed, or holds fewer than two classes.
    """
    root = Path(argument).expanduser().absolute()
    if not root.is_dir():
        raise ConfigError("a folder", f"source=folder:{argument} (no such folder)", "check the path")
    try:
        files = {split: _list(root, folder) for split, folder in _split_folders(root).items()}
    except OSError as error:
        raise DataError("a folder that can be listed", f"{error.filename}: {error.strerror}", "change its permissions") from None
    found = {path.name for listed in files.values() for path in listed}
    classes = tuple(sorted({path.name for listed in files.values() for path, names in listed.items() if any(map(_is_image, names))}))
    if len(classes) < 2:
        raise DataError("images of at least two classes", f"source={argument}: classes={', '.join(classes) or 'none'}", LAYOUT)
    if unprintable := [name for name in classes if not _is_text(name)]:
        raise DataError("class folders named in UTF-8", f"source={argument}: class={unprintable[0]!r}", "rename the folder")
    if empty := sorted(found - set(classes)):
        logger.warning("no class, because without images: %s", ", ".join(map(repr, empty)))
    labels = {name: label for label, name in enumerate(classes)}
    splits = {split: _order(root, listed, labels) for split, listed in files.items()}
    return FolderSource(f"folder:{argument}", classes, str(root), splits)


def _split_folders(root: Path) -> dict[str, Path]:
    if not (root / "train").is_dir():
        return {"train": root}
    held_out = [root / name for name in HELD_OUT if (root / name).is_dir()]
    return {"train": root / "train"} | ({"validation": held_out[0]} if held_out else {})


def _list(root: Path, folder: Path) -> dict[Path, list[str]]:
    """The files of every class folder, as paths inside the source."""
    classes = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    here = root.resolve()
    return {path: _files(root, path) for path in classes if not here.is_relative_to(path.resolve())}  # no link upwards


def _files(root: Path, folder: Path) -> list[str]:
    def fail(error: OSError) -> None:
        raise error

    found = []
    for directory, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(directory, name).relative_to(root).as_posix() for name in names if not name.startswith(".")]
    return found


def _order(root: Path, listed: Mapping[Path, list[str]], labels: Mapping[str, int]) -> tuple[Candidate, ...]:
    candidates = [Candidate(path, labels.get(folder.name, -1), _size(root / path)) for folder, paths in listed.items() for path in paths]
    return tuple(sorted(candidates, key=lambda candidate: (_hash(candidate.path), candidate.path)))


def _hash(path: str) -> bytes:
    return hashlib.blake2b(os.fsencode(path), digest_size=8).digest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a broken link: reading it says so
        return -1


def _read(root: str, candidate: Candidate) -> Example | Rejected:
    path = os.path.join(root, candidate.path)
    if not _is_text(candidate.path):
        return Rejected(os.fsencode(candidate.path).decode("utf-8", "backslashreplace"), "the name is not UTF-8")
    if not _is_image(candidate.path):
        return Rejected(candidate.path, f"not an image suffix: {Path(candidate.path).suffix or 'none'}")
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for ever
        return Rejected(candidate.path, "not a regular file")
    try:
        with open(path, "rb") as file:
            return Example(file.read(), candidate.label, candidate.path)
    except OSError as error:
        return Rejected(candidate.path, f"cannot be read: {error.strerror}")


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in SUFFIXES


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
