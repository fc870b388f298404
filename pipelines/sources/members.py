"""What zip and tar files hold, and the bytes of one member. Nothing is ever unpacked."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa

from pipelines.errors import DataError

MAX_HEADER = (
    2**20
)  # bytes: a name of a tar member stands in memory while it is read; real ones end at some thousand
MAX_TRAIL = 2**26  # bytes: tar fills its last record with zeros, some KiB
SEEK_POINTS = 1000  # in a gzip file, of 32 KiB each: 32 MiB go to every worker, and reaching a member inflates 1/2000 of the archive
MIN_SPACING = 2**18  # bytes between two seek points: inflating them takes some milliseconds
MAX_SPACING = 2**28  # the library divides by zero at 2**30, and takes the process with it
LOCAL_HEADER = struct.Struct(
    "<4s4xH16xHH"
)  # of a zip member: signature, compression method, lengths of its name and its extra field

# what a damaged archive makes the libraries raise
ARCHIVE_ERRORS = (
    *(tarfile.TarError, zipfile.BadZipFile, struct.error, zlib.error),
    *(OSError, EOFError, ValueError, OverflowError, NotImplementedError, RecursionError),
)


class Member(NamedTuple):
    """One entry of an archive.

    Attributes:
        path: As the archive has it; ends with `/` for a folder.
        size: Of the content, in bytes.
        offset: Where it begins: in a tar the content, in a zip the header before it.
        stored: Bytes it takes in a zip.
        stamp: Its CRC-32 in a zip, its time of change in a tar.
        problem: Why it cannot be read, or None.
    """

    path: bytes
    size: int
    offset: int
    stored: int
    stamp: int
    problem: str | None


class DamagedMemberError(Exception):
    """The bytes of a member are not what the archive says."""


def scan_zip(path: Path) -> Iterator[Member]:
    """Lists the central directory. It stands in memory, about 600 bytes a member, until the list is at its end."""
    with zipfile.ZipFile(
        path, metadata_encoding="latin-1"
    ) as archive:  # every byte has a character there, so the name's bytes come back
        for info in archive.infolist():
            name = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "latin-1")
            yield Member(
                name, info.file_size, info.header_offset, info.compress_size, info.CRC, _zip_problem(info)
            )


def _zip_problem(info: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "a link, which is not followed"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "not a regular file"
    if info.flag_bits & 1:
        return "encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"compression method {info.compress_type}; only stored and deflated members can be read"
    return None


def read_zip(file: IO[bytes], member: dict[str, Any]) -> bytes:
    """Reads one member of a zip file: never more than its declared size, and checked against its CRC-32.

    Raises:
        DamagedMemberError: It is cut off, or not what the directory says.
    """
    file.seek(member["offset"])
    header = file.read(LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
        raise DamagedMemberError("no member where the directory of the archive says")
    _, method, name, extra = LOCAL_HEADER.unpack(header)
    file.seek(name + extra, io.SEEK_CUR)
    content = file.read(min(member["stored"], 2 * member["size"] + 1024))  # deflating never adds as much
    if method == zipfile.ZIP_DEFLATED:
        try:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member["size"] + 1)
        except zlib.error as error:
            raise DamagedMemberError(f"damaged: {error}") from None
    if len(content) != member["size"] or zlib.crc32(content) != member["stamp"]:
        raise DamagedMemberError("damaged: not the size and CRC-32 that the archive says")
    return content


def scan_tar(path: Path) -> Iterator[Member]:
    """Lists a tar file from header to header.

    Raises:
        DataError: The file ends before the archive does.
    """
    with path.open("rb") as file:
        yield from _headers(path, file)


def scan_tar_gz(path: Path) -> Iterator[Member]:
    """Lists a gzipped tar file; inflates and checks all of it once on the way."""
    with gzip.open(path) as file:
        yield from _headers(path, cast(IO[bytes], file))
        end = file.tell()
        while file.read(MAX_HEADER):  # on to the end of the file, where the CRC-32 stands
            if file.tell() > end + MAX_TRAIL:
                raise tarfile.ReadError(f"more than {MAX_TRAIL} bytes behind the end of the tar")


def _headers(path: Path, file: IO[bytes]) -> Iterator[Member]:
    with closing(tarfile.TarFile(fileobj=_HeadersOnly(file), errors="surrogateescape")) as archive:  # type: ignore[arg-type]
        while info := archive.next():
            archive.members.clear()  # type: ignore[attr-defined]  # else it would keep every header
            name = info.name.encode("utf-8", "surrogateescape") + (b"/" if info.isdir() else b"")
            yield Member(name, info.size, info.offset_data, info.size, int(info.mtime), _tar_problem(info))
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(
            tarfile.BLOCKSIZE
        ):  # the library takes anything odd for the end
            raise DataError(
                "a whole archive",
                f"{path}: damaged or cut off after {archive.offset} bytes of tar",
                "copy the file again",
            )


def _tar_problem(info: tarfile.TarInfo) -> str | None:
    if info.issym() or info.islnk():
        return "a link, which is not followed"
    if not (info.isfile() or info.isdir()) or info.issparse():
        return "not a regular file"
    return None


def build_seek_points(path: Path, length: int) -> pa.Buffer:
    """The index of a gzip file that was found whole: places from where inflating can start.

    Args:
        path: The file.
        length: About how many bytes it holds inflated.
    """
    from indexed_gzip import IndexedGzipFile

    spacing = min(max(MIN_SPACING, length // SEEK_POINTS), MAX_SPACING)
    with IndexedGzipFile(str(path), spacing=spacing, buffer_size=io.DEFAULT_BUFFER_SIZE) as file:
        file.build_full_index()
        points = io.BytesIO()
        file.export_index(fileobj=points)
    return pa.py_buffer(points.getvalue())


def open_with_seek_points(path: str, points: pa.Buffer) -> IO[bytes]:
    """Opens a gzip file for reading anywhere, with the index that `build_seek_points` made."""
    from indexed_gzip import IndexedGzipFile

    file = IndexedGzipFile(path, buffer_size=io.DEFAULT_BUFFER_SIZE)
    file.import_index(fileobj=io.BytesIO(points))
    return cast(IO[bytes], file)


def read_tar(file: IO[bytes], member: dict[str, Any]) -> bytes:
    """Reads one member of a tar file.

    Raises:
        DamagedMemberError: It is cut off.
    """
    file.seek(member["offset"])
    content = file.read(member["size"])
    if len(content) != member["size"]:
        raise DamagedMemberError("cut off")
    return content


class _HeadersOnly:
    """A file of which the library reads headers and long names, however long they say they are."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)
