"""Reads parts of objects: an object as a file, and several requests in flight, which hides their latency."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, TypeVar, cast

from pipelines.remote.errors import ObjectMissingError
from pipelines.remote.store import read_range, stat
from pipelines.remote.uri import Uri

T = TypeVar("T")
U = TypeVar("U")

REQUESTS = 32  # in flight per task: at 50 ms each, 640 a second
AHEAD_BYTES = 2**26  # of results in memory before they are used
_END = object()  # follows the last item
PART_BYTES = 2**23  # a longer read is divided into parts of this size, which are read at the same time


def map_ahead(
    function: Callable[[T], U],
    items: Iterable[T],
    depth: int = REQUESTS,
    get_bytes: Callable[[T], int] | None = None,
) -> Iterator[U]:
    """Calls a function on threads ahead of use, and yields the results in the order of the items.

    Args:
        function: Waits for a store most of the time.
        items: Arguments of the calls.
        depth: Largest number of calls in flight.
        get_bytes: Size of the result of an item. Together, the results in memory are not larger than
            `AHEAD_BYTES`, unless a single one is. None if they are small.

    Raises:
        Exception: Whatever a call raises, when its result is due.
    """
    iterator = iter(items)
    following: Any = next(iterator, _END)
    pending: deque[tuple[Future[U], int]] = deque()
    pending_bytes = 0
    with ThreadPoolExecutor(depth, "read-ahead") as pool:
        try:
            while pending or following is not _END:
                while following is not _END and len(pending) < depth:
                    size = get_bytes(following) if get_bytes else 0
                    if pending and pending_bytes + size > AHEAD_BYTES:
                        break
                    pending.append((pool.submit(function, following), size))
                    pending_bytes += size
                    following = next(iterator, _END)
                future, size = pending.popleft()
                result = future.result()
                pending_bytes -= size
                yield result
        finally:
            for future, _ in pending:
                future.cancel()


def open_object(uri: Uri, buffer_bytes: int) -> BinaryIO:
    """Opens an object as a file that can be read at any position.

    Args:
        uri: Location of the object.
        buffer_bytes: Bytes that a short read requests. Small for headers far apart, large to read from the
            start to the end.

    Raises:
        ObjectMissingError: There is no such object.
        StoreError: The store denies access or does not respond.
    """
    info = stat(uri)
    if info is None:
        raise ObjectMissingError("an object that exists", f"{uri} (no such object)", "check the address")
    return cast(BinaryIO, io.BufferedReader(_ObjectFile(uri, info.size), buffer_bytes))


class _ObjectFile(io.RawIOBase):
    """An object as an unbuffered file: every read is a request.

    Args:
        uri: Location of the object.
        size: Size of the object in bytes.
    """

    def __init__(self, uri: Uri, size: int) -> None:
        self._uri = uri
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(start + offset, 0)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = min(len(buffer), self._size - self._position)
        if size <= 0:
            return 0
        starts = range(self._position, self._position + size, PART_BYTES)
        stop = self._position + size
        parts = map_ahead(lambda start: self._read_part(start, stop), starts, min(len(starts), REQUESTS))
        filled = 0
        for part in parts:
            buffer[filled : filled + len(part)] = part
            filled += len(part)
        self._position += filled
        return filled

    def _read_part(self, start: int, stop: int) -> bytes:
        return read_range(self._uri, start, min(PART_BYTES, stop - start))
