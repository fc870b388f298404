"""Images in a zip or tar file, laid out as in a folder; read straight out of the archive, which is never unpacked."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import ConfigError, DataError
from pipelines.records import Example, Rejected
from pipelines.sources import SOURCES
from pipelines.sources.layout import (
    PATH,
    SIZE,
    arrange_files,
    build_table,
    compute_fingerprint,
    list_top_folders,
    reject_by_name,
)
from pipelines.sources.members import (
    ARCHIVE_ERRORS,
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

SUFFIXES = {".zip": ".zip", ".tar": ".tar", ".tar.gz": ".tar.gz", ".tgz": ".tar.gz"}
SCAN = {".zip": scan_zip, ".tar": scan_tar, ".tar.gz": scan_tar_gz}

MAX_MEMBER = (
    2**28
)  # bytes: the pixels of the largest image that a shard takes; a worker holds one member at a time
MAX_RATIO = 100  # image files hardly shrink, and folders of tiny bitmaps 50 times
SMALL = 2**30  # bytes that any archive may expand to, whatever the ratio

SCHEMA = pa.schema(
    [
        PATH,
        SIZE,
        *(pa.field(name, pa.int64(), nullable=False) for name in ("offset", "stored", "stamp")),
        pa.field("problem", pa.string()),
    ]
)
ESCAPE = re.compile(rb"/|[A-Za-z]:|(.*/)?\.\.(/|$)|.*[\\\0]", re.DOTALL)
MAC = b"__MACOSX"  # what macOS adds beside the files

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArchiveSource:
    """A zip or tar file of images. Made by `open_archive`; reading it needs the file to be seen from where it is read.

    Attributes:
        name: `archive:FILE`.
        classes: Names of the class folders, sorted.
        path: Absolute path of the file.
        kind: `.zip`, `.tar` or `.tar.gz`.
        length: Size of the file in bytes.
        splits: Per split, every member in reading order: see `SCHEMA`, and `label`.
        seek_points: The index of a `.tar.gz`.
    """

    name: str
    classes: tuple[str, ...]
    path: str
    kind: str
    length: int
    splits: Mapping[str, pa.Table]
    seek_points: pa.Buffer | None

    def counts(self) -> Mapping[str, int]:
        """Number of members per split, whatever their suffix."""
        return {split: len(members) for split, members in self.splits.items()}

    def read(self, split: str, start: int, stop: int) -> Iterator[Example | Rejected]:
        """Yields members `start` to `stop` of a split.

        Raises:
            DataError: The file is not there any more, or another one.
        """
        take = read_zip if self.kind == ".zip" else read_tar
        try:
            with closing(self._opened()) as file:
                for member in self.splits[split].slice(start, stop - start).to_pylist():
                    identifier = os.fsdecode(member["path"])
                    if no := reject_by_name(member["path"]):
                        yield no
                    elif member["problem"]:
                        yield Rejected(identifier, member["problem"])
                    else:
                        try:
                            yield Example(take(file, member), member["label"], identifier)
                        except DamagedMemberError as error:
                            yield Rejected(identifier, str(error))
        except OSError as error:
            raise DataError(
                "an archive that can be read", f"{self.path}: {error.strerror or error}", "check the file"
            ) from None

    def compute_fingerprint(self) -> str:
        """A digest over path, size and CRC-32 of every member of a zip; over path, size and time of change in a tar.

        A member changed in place in a tar, under the same size and time, is not noticed.
        """
        return compute_fingerprint(self.classes, self.splits, ["size", "stamp"])

    def _opened(self) -> IO[bytes]:
        if (size := os.path.getsize(self.path)) != self.length:
            raise DataError(
                "an archive that stays the same",
                f"{self.path}: bytes={size}, before {self.length}",
                "start again",
            )
        return open(self.path, "rb") if self.seek_points is None else open_with_seek_points(self.path, self.seek_points)


def open_archive(argument: str) -> ArchiveSource:
    """Lists a `.zip`, `.tar`, `.tar.gz` or `.tgz` file, laid out and ordered as `pipelines.sources.layout.arrange_files` says.

    Where everything lies in one folder, other than `train`, that folder is the top: a folder, and the archives made of
    it or of what is in it, give the same examples in the same order.

    No link is followed. A link, a device, an encrypted or too large member among the images is rejected, and so is a
    member that comes again later under the same name (unpacking would have overwritten it). In a large `.tar.gz`
    every read inflates what lies before it: a `.tar` or `.zip` is read faster.

    Raises:
        ConfigError: There is no such file, or its suffix is none of these.
        DataError: It is damaged, holds a path that leads out of it, expands to more than the limits, or holds fewer
            than two classes.
    """
    path = Path(argument).expanduser().absolute()
    kind = find_archive_kind(argument)
    if kind is None:
        raise ConfigError(
            f"an archive: {', '.join(SUFFIXES)}",
            f"source=archive:{argument}",
            "pack the images as one of these",
        )
    if not path.is_file():
        fix = f"write folder:{argument}" if path.is_dir() else "check the path"
        raise ConfigError("an archive file", f"source=archive:{argument} (no such file)", fix)
    folders: set[bytes] = set()
    try:
        size = path.stat().st_size
        members = build_table(_checked(path, SCAN[kind](path), size, folders), SCHEMA)
        points = build_seek_points(path, pc.max(members["offset"]).as_py() or 0) if kind == ".tar.gz" else None
    except ARCHIVE_ERRORS as error:
        received = f"{path}: {error or type(error).__name__}{_looks_like(path, kind)}"
        raise DataError(f"a whole {kind} file", received, "copy or pack the file again") from None
    members, folders = _below_the_top(members, folders)
    classes, splits = arrange_files(argument, members, folders)
    splits = {split: _without_overwritten(table) for split, table in splits.items()}
    return ArchiveSource(f"archive:{argument}", classes, str(path), kind, size, splits, points)


SOURCES.register("archive")(open_archive)


def find_archive_kind(path: str) -> str | None:
    """`.zip`, `.tar` or `.tar.gz` by the suffix of a path or an address, or None."""
    return next((kind for suffix, kind in SUFFIXES.items() if path.lower().endswith(suffix)), None)


def _checked(path: Path, members: Iterator[Member], size: int, folders: set[bytes]) -> Iterator[Member]:
    """The files among the members, under clean paths; notes the folders. Raises before the reader goes beyond a limit."""
    expanded, limit, links = 0, max(SMALL, MAX_RATIO * size), 0
    for member in members:
        if ESCAPE.match(member.path):
            received = f"{path}: {os.fsdecode(member.path)!r}"
            raise DataError(
                "paths inside the archive, with / between their parts",
                received,
                "pack the images again, from inside their folder",
            )
        expanded = max(expanded, member.offset) + member.size  # a tar counts from its start, headers included
        if expanded > limit:
            received = f"{path}: bytes={size}, and {expanded} or more unpacked"
            raise DataError(
                f"an archive that expands to {MAX_RATIO} times its size at most",
                received,
                "use another archive",
            )
        clean = b"/".join(part for part in member.path.split(b"/") if part not in (b"", b"."))
        if clean.partition(b"/")[0] in (MAC, b""):
            continue
        if member.path.endswith((b"/", b"/.")):
            folders.add(clean)
            continue
        links += bool(member.problem and "link" in member.problem)
        problem = (
            f"larger than {MAX_MEMBER >> 20} MiB: {member.size} bytes" if member.size > MAX_MEMBER else None
        )
        yield member._replace(path=clean, problem=member.problem or problem)
    if links:
        logger.warning("%s: links=%d, which are not followed", path, links)


def _below_the_top(members: pa.Table, folders: set[bytes]) -> tuple[pa.Table, set[bytes]]:
    tops = {name for name in list_top_folders(members, folders) if not name.startswith(b".")}
    if len(tops) != 1 or tops == {b"train"}:
        return members, folders
    top = tops.pop() + b"/"
    batches = []
    for batch in members.to_batches():
        batch = batch.filter(pc.starts_with(batch["path"], pattern=top))
        paths = [path[len(top) :] for path in batch["path"].to_pylist()]
        batches.append(batch.set_column(0, PATH, pa.array(paths, PATH.type)))
    return pa.Table.from_batches(batches, SCHEMA), {
        folder[len(top) :] for folder in folders if folder.startswith(top)
    }


def _without_overwritten(members: pa.Table) -> pa.Table:
    """Members of one path stand side by side, as in the archive: only the last one counts, as after unpacking."""
    paths = members["path"]
    again = pc.equal(paths.slice(0, max(len(paths) - 1, 0)), paths.slice(1))
    if not pc.any(again).as_py():
        return members
    overwritten = pa.chunked_array([*again.chunks, pa.array([False])])
    problem = pc.if_else(
        overwritten, "comes again later in the archive under the same name", members["problem"]
    )
    return members.set_column(
        members.column_names.index("problem"), SCHEMA.field("problem"), problem
    ).combine_chunks()


def _looks_like(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        head = file.read(512)
    signs = {
        ".zip": head.startswith(b"PK"),
        ".tar.gz": head.startswith(b"\x1f\x8b"),
        ".tar": head[257:262] == b"ustar",
    }
    found = [other for other, there in signs.items() if there and other != kind]
    return f" (it looks like a {found[0]} file)" if found else ""
