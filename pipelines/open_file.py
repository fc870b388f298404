"""Files that are read at any position, from several threads, without being mapped into memory."""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path

from pipelines.errors import DataError

DAMAGE_FIX = "copy the file again, or build the shard set again"
SHARE_OF_FILES = 8  # a set keeps at most one of so many files open that the process may open
MAX_OPEN_FILES = 4096


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


class OpenFiles:
    """Open files by name; of more than `limit`, those that were used last.

    Args:
        limit: Number of files that are kept open; None to derive it from the limit of the process.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit or choose_open_files()
        self._files: OrderedDict[str, OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> OpenFile | None:
        """Returns a file if it is open."""
        with self._lock:
            file = self._files.get(name)
            if file is not None:
                self._files.move_to_end(name)
            return file

    def add(self, name: str, file: OpenFile) -> None:
        """Adds a file; one that is removed for it stays open until the threads that read it are done."""
        with self._lock:
            self._files[name] = file
            while len(self._files) > self._limit:
                self._files.popitem(last=False)

    def remove(self, name: str) -> OpenFile | None:
        """Removes a file, and returns it if it was open."""
        with self._lock:
            return self._files.pop(name, None)

    def keep(self, names: Collection[str]) -> None:
        """Removes all other files."""
        with self._lock:
            for name in self._files.keys() - names:
                del self._files[name]

    def clear(self) -> None:
        """Removes all files."""
        with self._lock:
            self._files.clear()


def choose_open_files() -> int:
    """Chooses how many files of a set are kept open: 128 where a process may open 1024, as is common."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return MAX_OPEN_FILES
    return min(max(allowed // SHARE_OF_FILES, 1), MAX_OPEN_FILES)
