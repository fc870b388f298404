"""Access to the files of a shard set, in a local directory or on a store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from pipelines.errors import DataError
from pipelines.open_file import DAMAGE_FIX, OpenFile, OpenFiles
from pipelines.remote.metrics import StoreMetrics
from pipelines.remote.uri import Location, parse_location
from pipelines.shards.manifest import StoredFile


class ShardFiles(Protocol):
    """Access to the files of a shard set, for any number of threads."""

    def fetch(self, file: StoredFile) -> Path:
        """Returns the local path of a whole, verified file, such as a table of shards.

        Raises:
            DataError: The file is missing or damaged; the message names it.
        """

    def open(self, files: Sequence[StoredFile]) -> AbstractContextManager[Sequence[OpenFile]]:
        """Opens files for the length of a block, within which none of them is evicted from a cache.

        What is missing locally is fetched in parallel. Call it once for all files that are read together.

        Raises:
            DataError: A file is missing, has another size, or cannot be opened; the message names it.
        """

    def read_range(self, file: StoredFile, start: int, size: int) -> bytes:
        """Reads `size` bytes of a file from position `start`, without fetching the rest.

        Raises:
            DataError: The file is missing, or ends before.
        """

    def describe(self, file: StoredFile) -> str:
        """Returns the path or URI of a file for messages."""

    def plan(self, windows: Iterable[Sequence[StoredFile]]) -> ShardFiles:
        """Returns access for one pass over the set, whose files can be fetched ahead and kept.

        Args:
            windows: Files in the order of their use, in groups that are read at the same time; may be
                endless.
        """

    def advance(self, window: int) -> None:
        """Announces that all windows of the plan before number `window` have been read."""

    def refetch(self, file: StoredFile) -> bool:
        """Replaces the local copy of a file that turned out to be damaged.

        Returns:
            Whether there is a new copy, so that reading it once more may help.
        """

    def metrics(self) -> StoreMetrics | None:
        """Returns what was fetched from a store so far, None for local files."""

    def close(self) -> None:
        """Ends the plan, and lets go of all files."""


class LocalFiles:
    """Files of a shard set in a local directory.

    Args:
        directory: Directory of the shard set.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open_files = OpenFiles()

    def fetch(self, file: StoredFile) -> Path:
        """Returns the path of a file whose size is that in the manifest.

        Raises:
            DataError: The file is missing or has another size.
        """
        path = self._directory / file.file
        try:
            size = path.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            raise DataError("every shard file of the manifest", f"{path} (missing)", DAMAGE_FIX) from None
        except OSError as error:
            received = f"{path}: {error.strerror or error}"
            raise DataError("a shard file that can be read", received, DAMAGE_FIX) from None
        if size != file.bytes:
            raise DataError(f"a shard file of {file.bytes} bytes", f"{path}: bytes={size}", DAMAGE_FIX)
        return path

    @contextmanager
    def open(self, files: Sequence[StoredFile]) -> Iterator[Sequence[OpenFile]]:
        """Opens files that stay open after the block, unless too many others are opened."""
        yield [self._open_file(file) for file in files]

    def read_range(self, file: StoredFile, start: int, size: int) -> bytes:
        """Reads part of a file, which stays open for the next call."""
        return self._open_file(file).read(start, size)

    def describe(self, file: StoredFile) -> str:
        """Returns the path of a file."""
        return str(self._directory / file.file)

    def plan(self, windows: Iterable[Sequence[StoredFile]]) -> LocalFiles:
        """Returns the same files, because nothing needs to be fetched."""
        return self

    def advance(self, window: int) -> None:
        """Does nothing."""

    def refetch(self, file: StoredFile) -> bool:
        """Returns False, because there is no other copy."""
        return False

    def metrics(self) -> None:
        """Returns None, because nothing is fetched."""

    def close(self) -> None:
        """Closes all files that no thread is reading."""
        self._open_files.clear()

    def _open_file(self, file: StoredFile) -> OpenFile:
        opened = self._open_files.get(file.file)
        if opened is not None:
            return opened
        path = self.fetch(file)
        try:
            opened = OpenFile(path, str(path))
        except OSError as error:
            received = f"{path}: {error.strerror or error}"
            raise DataError("a shard file that can be opened", received, DAMAGE_FIX) from None
        self._open_files.add(file.file, opened)
        return opened

    def __reduce__(self) -> tuple[type[LocalFiles], tuple[Path]]:
        return LocalFiles, (self._directory,)  # open files cannot be sent to another process


def open_files(location: str | Location, cache_gb: float | None = None) -> ShardFiles:
    """Opens the files of a shard set.

    Args:
        location: Directory of the shard set, or its address in an object store.
        cache_gb: Largest size of the local cache in units of 10**9 bytes, where the set is on a store; None
            for the default.
    """
    location = parse_location(location)
    if isinstance(location, Path):
        return LocalFiles(location)
    from pipelines.remote.cache import CachedFiles

    return CachedFiles(location, cache_gb)
