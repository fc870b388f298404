"""Images in a zip or tar file, laid out as in a folder, and read without unpacking the archive."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.errors import ARCHIVE_ERRORS, ConfigError, DataError
from pipelines.records import Example, Rejected
from pipelines.remote.files import fetch_object
from pipelines.remote.uri import Location, parse_location
from pipelines.sources.base import SOURCES, build_change_error, build_read_error
from pipelines.sources.layout import (
    MAX_FILE,
    PATH,
    SIZE,
    TableTree,
    arrange_files,
    build_table,
    compute_fingerprint,
    divide_table,
    find_labels,
    list_top_folders,
    reject_by_name,
)
from pipelines.sources.locations import hash_version, parse_source_location
from pipelines.sources.members import (
    DamagedMemberError,
    Member,
    build_seek_points,
    open_with_seek_points,
    read_tar,
    read_zip,
    scan_tar,
    scan_tar_gz,
    scan_zip,
)
from pipelines.sources.options import SourceOptions
from pipelines.sources.splits import find_split_folders, find_split_of_folder
from pipelines.storage import hash_json

SUFFIXES = {".zip": ".zip", ".tar": ".tar", ".tar.gz": ".tar.gz", ".tgz": ".tar.gz"}
SCAN = {".zip": scan_zip, ".tar": scan_tar, ".tar.gz": scan_tar_gz}

MAX_RATIO = 100  # image files hardly shrink, folders of tiny bitmaps by a factor of 50
ALWAYS_ALLOWED = 2**30  # bytes to which any archive may expand, regardless of the ratio

SCHEMA = pa.schema(
    [
        PATH,
        SIZE,
        *(pa.field(name, pa.int64(), nullable=False) for name in ("offset", "stored", "stamp")),
        pa.field("problem", pa.string()),
    ]
)
UNSAFE_PATH = re.compile(rb"/|[A-Za-z]:|(.*/)?\.\.(/|$)|.*[\\\0]", re.DOTALL)
MAC_FOLDER = b"__MACOSX"  # metadata that macOS adds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArchiveSource:
    """A zip or tar file of images, opened by `open_archive`. Every worker must see it under the same path.

    An archive in an object store is downloaded to the cache folder of every host that reads it.

    Attributes:
        name: Name of the source, `archive:FILE`.
        classes: Names of the class folders, sorted.
        path: Absolute path or URI of the file.
        kind: Kind of archive: `.zip`, `.tar` or `.tar.gz`.
        length: Size of the file in bytes.
        splits: Per split, a table of all members in reading order, with the columns of `SCHEMA` and `label`.
        seek_points: Index of a `.tar.gz` for reading at any position, else None.
        notes: Sentences about what was decided.
        stamp: Hash of the version of an object in a store, else 0.
        modified: Time of change of a file on a disk in nanoseconds, else 0.
    """

    name: str
    classes: tuple[str, ...]
    path: str
    kind: str
    length: int
    splits: Mapping[str, pa.Table]
    seek_points: pa.Buffer | None
    notes: tuple[str, ...] = ()
    stamp: int = 0
    modified: int = 0

    def counts(self) -> Mapping[str, int]:
        """Returns the number of members per split, whatever their suffix."""
        return {split: len(members) for split, members in self.splits.items()}

    def read(self, split: str, start: int, stop: int) -> Iterator[Example | Rejected]:
        """Yields members `start` to `stop` of a split.

        Raises:
            DataError: The file has disappeared or changed.
        """
        try:
            with closing(self._open()) as file:
                for member in self.splits[split].slice(start, stop - start).to_pylist():
                    yield self._read_member(file, member)
        except OSError as error:
            raise build_read_error(self.path, error, "an archive") from None

    def labels(self, split: str) -> NDArray[np.int32]:
        """Returns the label of every member, -1 if it is not an image or cannot be read: int32 `[n]`."""
        return find_labels(self.splits[split])

    def divide(self, is_held_out: NDArray[np.bool_], note: str) -> ArchiveSource:
        """Returns the source with some rows of the train split as validation split: bool `[n]`."""
        return replace(self, splits=divide_table(self.splits, is_held_out), notes=(*self.notes, note))

    def fingerprint(self) -> str:
        """Returns a digest over path, size and CRC-32 (zip) or time of change (tar) of every member.

        It does not detect a member of a tar that was replaced by one with the same size and time. For an
        archive in a store it also covers its etag.
        """
        digest = compute_fingerprint(self.classes, self.splits, ["size", "stamp"])
        return hash_json([digest, self.stamp]) if self.stamp else digest

    def check_unchanged(self) -> None:
        """Makes sure that the file is the one whose members were listed, without listing them again.

        Raises:
            DataError: The file has changed.
        """
        location = parse_location(self.path)
        path, stamp = _fetch(location)
        try:
            status = path.stat()
        except OSError:
            raise build_change_error(self.name) from None
        modified = status.st_mtime_ns if isinstance(location, Path) else 0
        if (status.st_size, stamp, modified) != (self.length, self.stamp, self.modified):
            raise build_change_error(self.name)

    def _open(self) -> IO[bytes]:
        location = parse_location(self.path)
        path, stamp = _fetch(location)
        length = path.stat().st_size
        if (length, stamp) != (self.length, self.stamp):
            received = f"{self.path}: bytes={length}, before {self.length}"
            raise DataError("an archive that does not change", received, "start again")
        if self.seek_points is None:
            return path.open("rb")
        return open_with_seek_points(str(path), self.seek_points)

    def _read_member(self, file: IO[bytes], member: dict[str, Any]) -> Example | Rejected:
        rejected = reject_by_name(member["path"])
        if rejected is not None:
            return rejected
        identifier = os.fsdecode(member["path"])
        if member["problem"]:
            return Rejected(identifier, member["problem"])
        try:
            content = read_zip(file, member) if self.kind == ".zip" else read_tar(file, member)
        except DamagedMemberError as error:
            return Rejected(identifier, str(error))
        return Example(content, member["label"], identifier)


def open_archive(argument: str, options: SourceOptions | None = None) -> ArchiveSource:
    """Lists an archive file; `pipelines.sources.splits` and `layout.arrange_files` describe its layout.

    A single top folder that is not named like a split is ignored, so that a folder, an archive of it and an
    archive of its content yield the same examples in the same order.

    Links are not followed. Links, devices, encrypted and too large members among the images are rejected, and
    so is a member that a later one of the same name would overwrite. In a large `.tar.gz`, every read
    decompresses from the last seek point on: a `.tar` or `.zip` is faster.

    Args:
        argument: Path of the archive, or its URI in an object store, from where it is downloaded once per
            host.
        options: Splits and class names that the user specified.

    Raises:
        ConfigError: The file does not exist, or its suffix is not in `SUFFIXES`.
        DataError: The archive is damaged, holds a path that leads out of it, expands to more than the
            limits, or holds fewer than two classes.
    """
    options = options or SourceOptions()
    kind = find_archive_kind(argument)
    location = parse_source_location("archive", argument)
    if kind is None:
        expected = f"an archive: {', '.join(SUFFIXES)}"
        raise ConfigError(expected, f"source=archive:{argument}", "pack the images as one of these")
    path, stamp = _fetch(location)
    if not path.is_file():
        fix = f"write folder:{argument}" if path.is_dir() else "check the path"
        raise ConfigError("an archive file", f"source=archive:{argument} (no such file)", fix)
    folders: set[bytes] = set()
    try:
        status = path.stat()
        length = status.st_size
        members = build_table(_select_files(location, SCAN[kind](path), length, folders), SCHEMA)
        points = None
        if kind == ".tar.gz":
            points = build_seek_points(path, pc.max(members["offset"]).as_py() or 0)
    except ARCHIVE_ERRORS as error:
        received = f"{location}: {error or type(error).__name__}{_guess_kind(path, kind)}"
        raise DataError(f"a whole {kind} file", received, "copy or pack the file again") from None
    except DataError as error:  # names the copy of an object
        received = error.received.replace(str(path), str(location))
        raise DataError(error.expected, received, error.fix) from None
    members, folders = _strip_top_folder(members, folders)
    layout = find_split_folders(
        f"archive:{argument}", TableTree(members, folders), options.splits, options.needs_train
    )
    arrangement = arrange_files(argument, members, layout.folders, folders, options.class_names)
    splits = {split: _mark_overwritten(table) for split, table in arrangement.splits.items()}
    notes = (*layout.describe(), *arrangement.notes)
    return ArchiveSource(
        f"archive:{argument}",
        arrangement.classes,
        str(location),
        kind,
        length,
        splits,
        points,
        notes,
        stamp,
        modified=status.st_mtime_ns if isinstance(location, Path) else 0,
    )


SOURCES.register("archive")(open_archive)  # no decorator, which would hide the return type


def _fetch(location: Location) -> tuple[Path, int]:
    """Returns the local path of an archive, and the version of the object that it is a copy of, else 0."""
    if isinstance(location, Path):
        return location, 0
    path, info = fetch_object(location)
    return path, hash_version(info)


def find_archive_kind(path: str) -> str | None:
    """Returns `.zip`, `.tar` or `.tar.gz` by the suffix of a path or address, or None."""
    for suffix, kind in SUFFIXES.items():
        if path.lower().endswith(suffix):
            return kind
    return None


def _select_files(
    path: Location, members: Iterator[Member], length: int, folders: set[bytes]
) -> Iterator[Member]:
    """Yields the files among the members with normalised paths, and adds the folders to `folders`.

    Raises:
        DataError: A path leads out of the archive, or a limit is exceeded; raised before more is read.
    """
    expanded = 0
    limit = max(ALWAYS_ALLOWED, MAX_RATIO * length)
    links = 0
    for member in members:
        if UNSAFE_PATH.match(member.path):
            expected = "paths inside the archive, with / between their parts"
            received = f"{path}: {os.fsdecode(member.path)!r}"
            raise DataError(expected, received, "pack the images again, from inside their folder")
        expanded = max(expanded, member.offset) + member.size  # offsets in a tar include headers
        if expanded > limit:
            expected = f"an archive that expands to at most {MAX_RATIO} times its size"
            received = f"{path}: bytes={length}, and {expanded} or more unpacked"
            raise DataError(expected, received, "use another archive")

        normalised = b"/".join(part for part in member.path.split(b"/") if part not in (b"", b"."))
        if normalised.partition(b"/")[0] in (MAC_FOLDER, b""):
            continue
        if member.path.endswith((b"/", b"/.")):
            folders.add(normalised)
            continue
        problem = member.problem
        if problem and "link" in problem:
            links += 1
        if not problem and member.size > MAX_FILE:
            problem = f"larger than {MAX_FILE >> 20} MiB: {member.size} bytes"
        yield member._replace(path=normalised, problem=problem)
    if links:
        logger.warning("%s: links=%d, which are not followed", path, links)


def _strip_top_folder(members: pa.Table, folders: set[bytes]) -> tuple[pa.Table, set[bytes]]:
    """Removes the top folder from all paths if there is only one, other than one named like a split."""
    tops = {name for name in list_top_folders(members, folders) if not name.startswith(b".")}
    if len(tops) != 1:
        return members, folders
    top = tops.pop()
    if find_split_of_folder(os.fsdecode(top)) is not None:
        return members, folders
    prefix = top + b"/"
    batches = []
    for batch in members.to_batches():
        batch = batch.filter(pc.starts_with(batch["path"], pattern=prefix))
        paths = [path[len(prefix) :] for path in batch["path"].to_pylist()]
        batches.append(batch.set_column(0, PATH, pa.array(paths, PATH.type)))
    inner_folders = {folder[len(prefix) :] for folder in folders if folder.startswith(prefix)}
    return pa.Table.from_batches(batches, SCHEMA), inner_folders


def _mark_overwritten(members: pa.Table) -> pa.Table:
    """Marks members that a later one of the same path would overwrite; equal paths follow each other."""
    paths = members["path"]
    is_repeated = pc.equal(paths.slice(0, max(len(paths) - 1, 0)), paths.slice(1))
    if not pc.any(is_repeated).as_py():
        return members
    is_overwritten = pa.chunked_array([*is_repeated.chunks, pa.array([False])])
    reason = "comes again later in the archive under the same name"
    problem = pc.if_else(is_overwritten, reason, members["problem"])
    index = members.column_names.index("problem")
    return members.set_column(index, SCHEMA.field("problem"), problem).combine_chunks()


def _guess_kind(path: Path, kind: str) -> str:
    """Returns a note on the kind of archive that the content looks like, if it is another one."""
    with path.open("rb") as file:
        head = file.read(512)
    looks_like = {
        ".zip": head.startswith(b"PK"),
        ".tar.gz": head.startswith(b"\x1f\x8b"),
        ".tar": head[257:262] == b"ustar",
    }
    for other, is_alike in looks_like.items():
        if is_alike and other != kind:
            return f" (it looks like a {other} file)"
    return ""
