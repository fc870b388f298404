"""A file that is read at any position, from several threads, without being mapped into memory."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.errors import DataError

DAMAGE_FIX = "copy the file again, or build the shard set again"


class DamagedFileError(DataError):
    """A file ends too early or cannot be read."""


class OpenFile:
    """A file that several threads can read at any position; closed with the last reference to this object.

    Args:
        path: Local path of the file.
        name: Path or URI of the file for messages.

    Attributes:
        path: Local path of the file.
        inode: Number of the file on its disk, which differs from that of a file that replaces it.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._descriptor = -1
        self._name = name
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.inode = os.fstat(self._descriptor).st_ino

    def read(self, start: int, size: int) -> bytes:
        """Reads `size` bytes from position `start`.

        Raises:
            DamagedFileError: The file ends before, or cannot be read.
        """
        try:
            data = os.pread(self._descriptor, size, start)
            while len(data) < size:  # at the end of the file, or after a signal
                rest = os.pread(self._descriptor, size - len(data), start + len(data))
                if not rest:
                    raise self._build_truncated_error(start + size)
                data += rest
        except (OSError, OverflowError, ValueError) as error:
            received = f"{self._name}: {getattr(error, 'strerror', None) or error}"
            raise DamagedFileError("a file that can be read", received, DAMAGE_FIX) from None
        return data

    def read_ahead(self, start: int, size: int) -> None:
        """Makes the kernel read a part into the page cache, without waiting for it."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, start, size, os.POSIX_FADV_WILLNEED)

    def _build_truncated_error(self, end: int) -> DamagedFileError:
        size = os.fstat(self._descriptor).st_size
        received = f"{self._name}: bytes={size} (truncated)"
        return DamagedFileError(f"a file of at least {end} bytes", received, DAMAGE_FIX)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
