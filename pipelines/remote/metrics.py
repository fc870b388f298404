"""What a process has read from a store through the shard cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True)
class StoreMetrics:
    """What was read from a store since a shard set was opened.

    Attributes:
        fetched_files: Number of files of the set that the processes of this host have fetched.
        fetched_bytes: Size of these files together.
        used_bytes: Size of the files that this process has used, counted again in every window.
        hit_bytes: Size of those that were in the cache because of an earlier window or run.
        wait_seconds: Seconds that threads of this process have waited for a file.
        cache: Budget and folder of the shard cache, for people.
    """

    fetched_files: int = 0
    fetched_bytes: int = 0
    used_bytes: int = 0
    hit_bytes: int = 0
    wait_seconds: float = 0.0
    cache: str = ""

    def __add__(self, other: StoreMetrics) -> StoreMetrics:
        """Adds the metrics of another shard set."""
        return StoreMetrics(
            self.fetched_files + other.fetched_files,
            self.fetched_bytes + other.fetched_bytes,
            self.used_bytes + other.used_bytes,
            self.hit_bytes + other.hit_bytes,
            self.wait_seconds + other.wait_seconds,
            self.cache or other.cache,
        )

    @property
    def hit_rate(self) -> float:
        """Share of the bytes used that did not have to be fetched again; 0 before the first use."""
        return self.hit_bytes / self.used_bytes if self.used_bytes else 0.0


class Counters:
    """The sums that all passes of a process over one shard set add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used_bytes = 0
        self._hit_bytes = 0
        self._wait_seconds = 0.0

    def add_use(self, size: int, is_hit: bool) -> None:
        """Counts the use of a file in one window.

        Args:
            size: Size of the file.
            is_hit: Whether it was in the cache because of an earlier use.
        """
        with self._lock:
            self._used_bytes += size
            if is_hit:
                self._hit_bytes += size

    @contextmanager
    def measure_wait(self) -> Iterator[None]:
        """Adds the duration of a block to the time waited."""
        began = perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._wait_seconds += perf_counter() - began

    def read(self, fetched_files: int, fetched_bytes: int, cache: str) -> StoreMetrics:
        """Returns the sums, together with what the host has fetched.

        Args:
            fetched_files: Number of files that the host has fetched.
            fetched_bytes: Size of these files together.
            cache: Budget and folder of the cache, for people.
        """
        with self._lock:
            return StoreMetrics(
                fetched_files, fetched_bytes, self._used_bytes, self._hit_bytes, self._wait_seconds, cache
            )
