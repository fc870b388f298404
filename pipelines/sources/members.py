"""Lists the members of zip and tar files and reads single members. Nothing is ever unpacked to disk."""

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
from pipelines.remote.uri import Location

MAX_HEADER = 2**20  # bytes: a tar member's name is held in memory; real ones have a few thousand at most
MAX_TRAILER = 2**26  # bytes: tar fills its last record with zeros, a few KiB
# Per gzip file: takes 32 MiB in every worker, and a seek decompresses 1/2000 of the file on average.
SEEK_POINTS = 1000
MIN_SPACING = 2**18  # bytes between two seek points: decompressing them takes a few milliseconds
MAX_SPACING = 2**28  # the library divides by zero at 2**30, which ends the process
ZIP_ENTRY = struct.Struct("<4s4xH16xHH")  # signature, compression method, lengths of name and extra field
MAX_STAMP = 2**62  # seconds; also excludes infinity, and NaN, which no comparison includes
UTF8_FLAG = 0x800
ENCRYPTED_FLAG = 0x1


class Member(NamedTuple):
    """One entry of an archive.

    Attributes:
        path: Path as stored in the archive; ends with `/` for a folder.
        size: Size of the content in bytes.
        offset: Position of the content in a tar, of the header before it in a zip.
        stored: Number of bytes that the content takes in a zip.
        stamp: CRC-32 of the content in a zip, time of the last change in a tar.
        problem: Reason why the member cannot be read, or None.
    """

    path: bytes
    size: int
    offset: int
    stored: int
    stamp: int
    problem: str | None


class DamagedMemberError(Exception):
    """The bytes of a member differ from what the archive records."""


def scan_zip(path: Path) -> Iterator[Member]:
    """Lists the central directory of a zip file, which takes about 600 bytes of memory per member.

    The directory is compared with the header before each member: a member of another name is rejected.

    Raises:
        DataError: Two members share bytes of the file, as in a fabricated archive.
    """
    # In Latin-1 every byte is a character, so the bytes of names can be recovered.
    with path.open("rb") as file, zipfile.ZipFile(path, metadata_encoding="latin-1") as archive:
        end_of_last = 0
        previous = ""
        for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
            if info.header_offset < end_of_last:
                names = f"{info.orig_filename!r} and {previous!r}"
                received = f"{path}: {names} share bytes of the file"
                raise DataError("an archive whose members do not overlap", received, "use another archive")
            end_of_last = _find_end(info)
            previous = info.orig_filename
        for info in archive.infolist():
            encoding = "utf-8" if info.flag_bits & UTF8_FLAG else "latin-1"
            yield Member(
                path=info.orig_filename.encode(encoding),
                size=info.file_size,
                offset=info.header_offset,
                stored=info.compress_size,
                stamp=info.CRC,
                problem=_check_zip_member(info) or _check_local_name(file, info),
            )


def read_zip(file: IO[bytes], member: dict[str, Any]) -> bytes:
    """Reads one member of a zip file: at most its declared size, verified by its CRC-32.

    Args:
        file: The archive, open for reading.
        member: Fields of the `Member` by name.

    Raises:
        DamagedMemberError: The member is truncated, or differs from what the directory records.
    """
    file.seek(member["offset"])
    header = file.read(ZIP_ENTRY.size)
    if len(header) < ZIP_ENTRY.size or not header.startswith(b"PK\3\4"):
        raise DamagedMemberError("no member where the directory of the archive says")
    _, method, name_length, extra_length = ZIP_ENTRY.unpack(header)
    file.seek(name_length + extra_length, io.SEEK_CUR)
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
        yield from scan_headers(path, file)


def scan_tar_gz(path: Path) -> Iterator[Member]:
    """Lists a gzipped tar file; decompresses and verifies all of it once.

    Raises:
        DataError: The file ends before the archive does.
    """
    with gzip.open(path) as file:
        yield from scan_headers(path, cast(IO[bytes], file))
        end = file.tell()
        while file.read(MAX_HEADER):  # up to the end of the file, where the CRC-32 is
            if file.tell() > end + MAX_TRAILER:
                raise tarfile.ReadError(f"more than {MAX_TRAILER} bytes behind the end of the tar")


def read_tar(file: IO[bytes], member: dict[str, Any]) -> bytes:
    """Reads one member of a tar file.

    Args:
        file: The archive, open for reading; decompressed if it is gzipped.
        member: Fields of the `Member` by name.

    Raises:
        DamagedMemberError: The member is truncated.
    """
    file.seek(member["offset"])
    content = file.read(member["size"])
    if len(content) != member["size"]:
        raise DamagedMemberError("cut off")
    return content


def build_seek_points(path: Path, length: int) -> pa.Buffer:
    """Builds the index of an undamaged gzip file: positions from which decompression can start.

    Args:
        path: Path of the gzip file.
        length: Approximate number of decompressed bytes.
    """
    from indexed_gzip import IndexedGzipFile

    spacing = min(max(MIN_SPACING, length // SEEK_POINTS), MAX_SPACING)
    with IndexedGzipFile(str(path), spacing=spacing, buffer_size=io.DEFAULT_BUFFER_SIZE) as file:
        file.build_full_index()
        points = io.BytesIO()
        file.export_index(fileobj=points)
    return pa.py_buffer(points.getvalue())


def open_with_seek_points(path: str, points: pa.Buffer) -> IO[bytes]:
    """Opens a gzip file for reading at any position, with the index from `build_seek_points`."""
    from indexed_gzip import IndexedGzipFile

    file = IndexedGzipFile(path, buffer_size=io.DEFAULT_BUFFER_SIZE)
    file.import_index(fileobj=io.BytesIO(points))
    return cast(IO[bytes], file)


def _check_zip_member(info: zipfile.ZipInfo) -> str | None:
    """Returns the reason why a member cannot be read."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "a link, which is not followed"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "not a regular file"
    if info.flag_bits & ENCRYPTED_FLAG:
        return "encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"compression method {info.compress_type}; only stored and deflated members can be read"
    return None


def _find_end(info: zipfile.ZipInfo) -> int:
    """Returns the position up to which a member takes at least."""
    return info.header_offset + ZIP_ENTRY.size + len(info.orig_filename) + info.compress_size


def _check_local_name(file: IO[bytes], info: zipfile.ZipInfo) -> str | None:
    """Compares the name in the directory with that in the header before the member."""
    file.seek(info.header_offset)
    header = file.read(ZIP_ENTRY.size)
    if len(header) < ZIP_ENTRY.size or not header.startswith(b"PK\3\4"):
        return "no member where the directory of the archive says"
    name_length = ZIP_ENTRY.unpack(header)[2]
    local_name = file.read(name_length)
    encoding = "utf-8" if info.flag_bits & UTF8_FLAG else "latin-1"
    if local_name != info.orig_filename.encode(encoding):
        return f"another name in its own header: {local_name.decode('utf-8', 'backslashreplace')!r}"
    return None


def _read_stamp(time: float) -> int:
    """Returns the time of the last change in seconds; 0 for one that is not a number or too large."""
    return int(time) if abs(time) < MAX_STAMP else 0


def _check_tar_member(info: tarfile.TarInfo) -> str | None:
    """Returns the reason why a member cannot be read."""
    if info.issym() or info.islnk():
        return "a link, which is not followed"
    if not (info.isfile() or info.isdir()) or info.issparse():
        return "not a regular file"
    return None


def scan_headers(path: Location, file: IO[bytes]) -> Iterator[Member]:
    """Lists the tar in an open file, which may be moved between two members.

    Args:
        path: Path or URI of the file, for messages.
        file: The tar, decompressed.

    Raises:
        DataError: The file ends before the archive does.
    """
    headers = cast(IO[bytes], _HeaderFile(file))
    with closing(tarfile.TarFile(fileobj=headers, errors="surrogateescape")) as archive:
        while info := archive.next():
            archive.members.clear()  # type: ignore[attr-defined]  # else the library would keep every header
            name = info.name.encode("utf-8", "surrogateescape")
            yield Member(
                path=name + b"/" if info.isdir() else name,
                size=info.size,
                offset=info.offset_data,
                stored=info.size,
                stamp=_read_stamp(info.mtime),
                problem=_check_tar_member(info),
            )
        file.seek(archive.offset)
        # The library takes any invalid block for the end of the archive.
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise DataError(
                "a whole archive",
                f"{path}: damaged or cut off after {archive.offset} bytes of tar",
                "copy the file again",
            )


class _HeaderFile:
    """A file that refuses to read headers and names of an unreasonable size.

    Args:
        file: The archive, open for reading.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)
