"""Reads the files of a shard set on a store through a cache on local disk, which a host's processes share."""

from __future__ import annotations

import logging
import os
import re
import threading
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from time import monotonic, sleep, time_ns
from typing import Protocol

from pipelines.errors import DataError, GlassboxError
from pipelines.open_file import OpenFile, OpenFiles
from pipelines.remote.cache_errors import NO_SPACE, describe_full_disk, describe_lack, report_folder_errors
from pipelines.remote.disk import CacheFolder, Fetch, Outcome, open_cache
from pipelines.remote.folder import format_gigabytes
from pipelines.remote.metrics import Counters, StoreMetrics
from pipelines.remote.needs import WHOLE_BYTES
from pipelines.remote.schedule import MAX_LOOKAHEAD, CacheEntry, Schedule
from pipelines.remote.store import download, read_range
from pipelines.remote.uri import Uri

logger = logging.getLogger(__name__)

THREADS = 4  # of a pass, that fetch ahead
KNOWN_USES = 65_536  # files whose last use is remembered; it tells hits from misses
RETRY_SECONDS = 0.5  # until it is tried again to fetch ahead, where there was no space
ROOM_SECONDS = 0.05  # until it is tried again to fetch a file that a thread waits for
# Until a thread with nothing to fetch publishes the end of a window; shorter than others wait for space.
IDLE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0  # after failures of the store, while fetching ahead
OWN_PATIENCE_SECONDS = 5.0  # that a thread waits where only this process can free space
PATIENCE_SECONDS = 600.0  # that a thread waits for other processes to free space
TWO_WINDOWS = "two windows of shards are in use at a time"


class StoredObject(Protocol):
    """A file of a shard set, as its manifest describes it."""

    @property
    def file(self) -> str:
        """Name, relative to the shard set."""

    @property
    def bytes(self) -> int:
        """Size of the file."""

    @property
    def sha256(self) -> str:
        """Digest of the content in hexadecimal."""


class CachedFiles:
    """The files of a shard set on a store; see `pipelines.shards.files.ShardFiles`.

    Args:
        location: URI of the shard set.
        cache_gb: Budget from the configuration in units of 10**9 bytes; None if it is not set.

    Raises:
        ConfigError: The cache folder cannot be written.
    """

    def __init__(self, location: Uri, cache_gb: float | None = None) -> None:
        cache = open_cache(cache_gb)
        with report_folder_errors(cache.folder):
            cache.shrink()
            source = _Source(cache, location)
        self._connect(source, _Pass(source), cache_gb)

    def _connect(self, source: _Source, files: _Pass, cache_gb: float | None) -> None:
        self._source = source
        self._pass = files
        self._cache_gb = cache_gb
        # The threads of a pass do not refer to this object, so that they end with it.
        weakref.finalize(self, files.close)

    def fetch(self, file: StoredObject) -> Path:
        """Returns the local path of a whole, verified file, which is kept until `close`.

        Raises:
            DataError: The store has no such file, or one with other content, or does not respond.
            ConfigError: The cache has no space.
        """
        return self._pass.pin(self._source.describe_entry(file))

    def open(self, files: Sequence[StoredObject]) -> AbstractContextManager[Sequence[OpenFile]]:
        """Opens files for the length of a block, and fetches those that are missing.

        Raises:
            DataError: The store has no such file, or one with other content, or does not respond.
            ConfigError: The cache has no space.
        """
        return self._pass.borrow([self._source.describe_entry(file) for file in files])

    def read_range(self, file: StoredObject, start: int, size: int) -> bytes:
        """Reads part of a file; fetches it whole if it is small.

        Raises:
            DataError: The file is missing, or ends before.
        """
        entry = self._source.describe_entry(file)
        if entry.bytes > WHOLE_BYTES and not self._source.cache.has(entry):
            with self._source.counters.measure_wait():
                return read_range(self._source.location / entry.name, start, size)
        path = self._pass.pin(entry)
        return OpenFile(path, self.describe(file)).read(start, size)

    def describe(self, file: StoredObject) -> str:
        """Returns the URI of a file."""
        return str(self._source.location / file.file)

    def plan(self, windows: Iterable[Sequence[StoredObject]]) -> CachedFiles:
        """Returns access for one pass, whose files are fetched ahead and kept until their next use is far.

        Raises:
            ConfigError: The cache cannot hold two windows.
        """
        describe = self._source.describe_entry
        schedule = Schedule(([describe(file) for file in window] for window in windows), self._budget)
        self._check_budget(schedule.find_need() + self._pass.count_pinned(), TWO_WINDOWS)
        planned = CachedFiles.__new__(CachedFiles)
        planned._connect(self._source, _Pass(self._source, schedule), self._cache_gb)
        return planned

    def advance(self, window: int) -> None:
        """Announces that all windows of the plan before number `window` have been read."""
        self._pass.advance(window)

    def refetch(self, file: StoredObject) -> bool:
        """Removes the local copy of a file that turned out to be damaged; the next use fetches it again."""
        self._pass.discard(self._source.describe_entry(file))
        return True

    def _check_budget(self, needed: int, purpose: str) -> None:
        if needed > self._budget:
            raise describe_lack(self._source.cache.budget, needed, purpose)

    def metrics(self) -> StoreMetrics:
        """Returns what was fetched, used and waited for since the set was opened."""
        return self._source.read_metrics()

    def close(self) -> None:
        """Ends the plan, and lets go of all files."""
        self._pass.close()

    @property
    def _budget(self) -> int:
        return self._source.cache.budget.bytes

    def __reduce__(self) -> tuple[type[CachedFiles], tuple[Uri, float | None]]:
        return CachedFiles, (self._source.location, self._cache_gb)  # a plan belongs to its process


class _Source:
    """A shard set on a store, and what all passes of a process over it share."""

    def __init__(self, cache: CacheFolder, location: Uri) -> None:
        self.cache = cache
        self.location = location
        self.counters = Counters()
        self._name = cache.add_set(location)
        self._fetched_before = cache.read_fetched(self._name)
        # Time of the last use by this process, of the files that were used last.
        self._used_at: OrderedDict[str, int] = OrderedDict()
        self._opened_at = time_ns()
        self._lock = threading.Lock()

    def describe_entry(self, file: StoredObject) -> CacheEntry:
        """Returns how the cache knows a file; other content of the same object is another entry."""
        return _build_entry(self._name, file.file, file.bytes, file.sha256)

    def count_use(self, entry: CacheEntry, is_in_use: bool = False) -> None:
        """Counts that a window uses a file: a hit if nobody has fetched it since its use before ended.

        Args:
            entry: File that the window uses.
            is_in_use: Whether its use before has not ended.
        """
        with self._lock:
            used_before = self._used_at.get(entry.key, self._opened_at)
        fetched_at = self.cache.read_fetch_time(entry)
        is_old = fetched_at is not None and fetched_at < used_before
        self.counters.add_use(entry.bytes, is_old or is_in_use)

    def end_use(self, key: str) -> None:
        """Notes the time at which a file is no longer in use."""
        with self._lock:
            self._used_at[key] = time_ns()
            self._used_at.move_to_end(key)
            if len(self._used_at) > KNOWN_USES:
                self._used_at.popitem(last=False)

    def read_metrics(self) -> StoreMetrics:
        """Returns what was fetched, used and waited for so far."""
        files, size = self.cache.read_fetched(self._name)
        files_before, size_before = self._fetched_before
        cache = f"shard cache: {self.cache.budget} in {self.cache.folder}"
        return self.counters.read(files - files_before, size - size_before, cache)


@lru_cache(MAX_LOOKAHEAD)  # every batch asks for the files that it reads
def _build_entry(set_name: str, name: str, size: int, sha256: str) -> CacheEntry:
    safe_name = re.sub(r"[^\w.-]", "_", name)[-100:]
    return CacheEntry(f"{set_name}/{sha256[:16]}-{safe_name}", name, size, sha256)


class _Pass:
    """One pass over a shard set: the files it uses now, and the threads that fetch what it needs next.

    Without a schedule, nothing is fetched ahead, and files are in use only while they are borrowed.
    """

    def __init__(self, source: _Source, schedule: Schedule | None = None) -> None:
        self._source = source
        self._cache = source.cache
        self._schedule = schedule
        self._user = self._cache.open_user(source.location)
        self._condition = threading.Condition()
        self._is_closed = False
        self._borrowed: Counter[str] = Counter()
        self._pinned: dict[str, CacheEntry] = {}
        self._in_use: dict[str, int] = {}  # bytes of the files in use, as published
        self._open_files = OpenFiles()
        self._sizes: dict[str, int] = {}
        self._queue: deque[tuple[CacheEntry, int]] = deque()  # what is to be fetched ahead, and its distance
        self._complete: set[str] = set()  # upcoming files, not looked for again until they are near
        self._fetching = 0  # threads that look at a file, or fetch it
        self._has_ended_use = False  # whether a file that is published as in use is not
        self._horizon = 0  # largest distance of a file for which others are evicted
        self._resume_at = 0.0
        self._failures = 0
        if schedule is not None:
            with self._condition:
                self._publish()
            for number in range(THREADS):
                threading.Thread(
                    target=self._fetch_ahead, name=f"glassbox-fetch-{number}", daemon=True
                ).start()

    @contextmanager
    def borrow(self, entries: Sequence[CacheEntry]) -> Iterator[Sequence[OpenFile]]:
        """Opens files for the length of a block."""
        self._take(entries)
        try:
            opened = [self._open_files.get(entry.key) for entry in entries]
            # What is open was complete, and nobody evicts it while it is in use.
            self._obtain_all([entry for entry, file in zip(entries, opened, strict=True) if file is None])
            yield [file or self._open(entry) for entry, file in zip(entries, opened, strict=True)]
        finally:
            self._give_back(entries)

    def pin(self, entry: CacheEntry) -> Path:
        """Returns the path of a file that is in use until the end of the pass."""
        with self._condition:
            if entry.key not in self._pinned:
                self._pinned[entry.key] = entry
                self._source.count_use(entry)
                self._publish()
        path = self._cache.find(entry)
        if path is not None:
            return path
        with self._source.counters.measure_wait():
            return self._obtain(entry)

    def count_pinned(self) -> int:
        """Returns the bytes of the files that are in use until the end of the pass."""
        with self._condition:
            return sum(entry.bytes for entry in self._pinned.values())

    def advance(self, window: int) -> None:
        """Ends the use of all windows before number `window`."""
        with self._condition:
            if self._schedule is not None and self._schedule.advance(window):
                self._update_use()
                # A window that follows is about to be published; until then, the other processes may keep
                # the files of this one, unless somebody here waits for their space.
                self._has_ended_use = True
                if self._queue or self._fetching:
                    self._publish()

    def discard(self, entry: CacheEntry) -> None:
        """Removes a damaged file from the cache, unless it has been replaced since it was opened."""
        opened = self._open_files.remove(entry.key)
        path = self._cache.find(entry)
        if opened is not None:
            self._cache.remove(entry, opened.inode)
        elif path is not None:
            self._cache.remove(entry, path.stat().st_ino)

    def close(self) -> None:
        """Ends the pass and its threads."""
        with self._condition:
            if self._is_closed:
                return
            self._is_closed = True
            self._open_files.clear()
            self._condition.notify_all()
        self._user.close()

    def _take(self, entries: Sequence[CacheEntry]) -> None:
        """Makes files in use, so that nobody evicts them."""
        keys = {entry.key for entry in entries}
        with self._condition:
            if self._schedule is not None:
                new = self._schedule.request(keys)
            else:
                new = [entry for entry in entries if not self._borrowed[entry.key]]
            for entry in entries:
                self._borrowed[entry.key] += 1
                self._sizes[entry.key] = entry.bytes
            self._count_uses(new)
            if new or not keys <= self._in_use.keys():
                self._publish()
                self._cache.touch(new)

    def _count_uses(self, new: Sequence[CacheEntry]) -> None:
        """Counts the files of windows that have just begun."""
        added = [entry for entry in new if entry.key not in self._in_use]
        # With lanes, a window continues with most of the files of the one before it. If it has no others, it
        # is the same window in the next epoch.
        for entry in added or new:
            self._source.count_use(entry, is_in_use=not added)

    def _give_back(self, entries: Sequence[CacheEntry]) -> None:
        with self._condition:
            for entry in entries:
                self._borrowed[entry.key] -= 1
                if not self._borrowed[entry.key]:
                    del self._borrowed[entry.key]
                    del self._sizes[entry.key]
            if self._schedule is None:
                self._publish()

    def _update_use(self) -> None:
        """Finds out which files are in use; the caller holds the lock."""
        in_use = {entry.key: entry.bytes for entry in self._pinned.values()}
        in_use |= {key: self._sizes[key] for key in self._borrowed}
        if self._schedule is not None:
            in_use |= {entry.key: entry.bytes for entry in self._schedule.list_current()}
        self._open_files.keep(in_use)  # an evicted file takes space as long as it is open
        for key in self._in_use.keys() - in_use.keys():
            self._source.end_use(key)
        self._in_use = in_use

    def _publish(self) -> None:
        """Tells all processes of the host what this pass uses and needs next; the caller holds the lock."""
        if self._is_closed:
            return
        self._update_use()
        next_uses = self._schedule.find_next_uses() if self._schedule is not None else {}
        self._user.publish(list(self._in_use), next_uses)
        self._has_ended_use = False
        self._queue = deque(self._list_missing())
        self._resume_at = 0.0
        if self._queue:
            self._condition.notify_all()

    def _list_missing(self) -> Iterator[tuple[CacheEntry, int]]:
        """Yields the upcoming files that a thread has to look at, with their distances.

        Those that are near are looked for here, because waking a thread for each takes longer: all of them,
        because another process may have evicted one that was complete when it was far.
        """
        if self._schedule is None:
            return
        self._horizon = self._schedule.find_horizon()
        listed: set[str] = set()
        for window, distance in self._schedule.iterate_upcoming():
            is_near = distance <= self._horizon
            if not is_near and self._complete >= window.keys:
                continue
            for entry in window.entries:
                if entry.key in listed or (entry.key in self._complete and not is_near):
                    continue
                listed.add(entry.key)
                if is_near and self._cache.has(entry):
                    self._complete.add(entry.key)
                    continue
                yield entry, distance

    def _obtain_all(self, entries: Sequence[CacheEntry]) -> None:
        """Waits until some files are complete; fetches those that nobody else fetches."""
        missing = [entry for entry in entries if not self._cache.has(entry)]
        if not missing:
            return
        with self._source.counters.measure_wait():
            if len(missing) == 1:
                self._obtain(missing[0])
                return
            with ThreadPoolExecutor(min(THREADS, len(missing))) as pool:
                for _ in pool.map(self._obtain, missing):
                    pass

    def _obtain(self, entry: CacheEntry) -> Path:
        """Waits until a file is complete, or fetches it.

        Raises:
            DataError: The store has no such file, or one with other content, or does not respond.
            ConfigError: The cache has no space.
        """
        began = monotonic()
        while True:
            path = self._cache.find(entry)
            if path is not None:
                return path
            with report_folder_errors(self._cache.folder):
                outcome = self._cache.reserve(entry)
            if outcome.fetch is not None:
                self._fetch_with_space(outcome.fetch)
            elif outcome.state == "fetching":
                self._cache.wait_for_fetch(entry)
            elif outcome.state == "full":
                self._check_space(entry, outcome, monotonic() - began)
                sleep(ROOM_SECONDS)

    def _check_space(self, entry: CacheEntry, outcome: Outcome, waited: float) -> None:
        """Checks that it makes sense to wait for space.

        Args:
            entry: File that is needed.
            outcome: Result of the last attempt to reserve space.
            waited: Seconds since the first attempt.

        Raises:
            ConfigError: The files that this process uses at the same time exceed the budget, or the disk.
            DataError: Other processes have not freed space for a long time.
        """
        with self._condition:
            needed = sum(self._in_use.values())
        # Another pass of this process may be about to free space, or may be waiting for this one.
        if waited > OWN_PATIENCE_SECONDS and all(user.pid == os.getpid() for user in outcome.blockers):
            needed = max(needed, outcome.needed)
            if outcome.is_disk_full:
                raise describe_full_disk(self._cache.folder)
        if needed > self._cache.budget.bytes:
            raise describe_lack(self._cache.budget, needed, "these files are in use at the same time")
        if waited > PATIENCE_SECONDS:
            uri = self._source.location / entry.name
            users = ", ".join(sorted({str(user) for user in outcome.blockers})) or "nobody"
            raise DataError(
                f"space in the shard cache for {uri} ({format_gigabytes(entry.bytes)})",
                f"budget={self._cache.budget}, used by {users}",
                "set data.cache_gb or GLASSBOX_CACHE_GB to a larger number, or run fewer jobs on this host",
            )

    def _fetch_with_space(self, fetch: Fetch) -> None:
        """Fetches a file; where the disk is full, once more after files that nobody uses are evicted.

        Raises:
            ConfigError: The disk is full.
        """
        try:
            self._fetch(fetch)
        except OSError as error:
            with report_folder_errors(self._cache.folder):
                can_retry = error.errno in NO_SPACE and self._cache.evict_for(fetch.entry.bytes)
                outcome = self._cache.reserve(fetch.entry) if can_retry else Outcome("full")
                if outcome.fetch is None and outcome.state == "full":
                    raise
                if outcome.fetch is not None:
                    self._fetch(outcome.fetch)

    def _fetch(self, fetch: Fetch) -> None:
        entry = fetch.entry
        try:
            download(self._source.location / entry.name, fetch.path, entry.bytes, entry.sha256)
        except BaseException:
            self._cache.abandon(fetch)
            raise
        self._cache.complete(fetch)

    def _open(self, entry: CacheEntry) -> OpenFile:
        """Opens a file in use, once it is complete."""
        while True:
            path = self._obtain(entry)
            with report_folder_errors(path), suppress(FileNotFoundError):  # discarded by another process
                opened = OpenFile(path, str(self._source.location / entry.name))
                self._open_files.add(entry.key, opened)
                return opened

    def _fetch_ahead(self) -> None:
        """Fetches what is needed next, in a thread, until the pass ends."""
        while True:
            with self._condition:
                while not self._is_closed and (not self._queue or monotonic() < self._resume_at):
                    pause = self._resume_at - monotonic() if self._queue else IDLE_SECONDS
                    self._condition.wait(pause)
                    self._publish_ended_use()
                if self._is_closed:
                    return
                entry, distance = self._queue.popleft()
                self._fetching += 1
            try:
                has_space = self._try_fetch_ahead(entry, distance)
            except (GlassboxError, OSError) as error:
                # A thread that needs the file tries again, and reports what is wrong.
                logger.debug("%s was not fetched ahead: %s", entry.name, error)
                with self._condition:
                    self._fetching -= 1
                    self._queue.append((entry, distance))
                    self._failures += 1
                    self._resume_at = monotonic() + min(2.0**self._failures, MAX_PAUSE_SECONDS)
                continue
            with self._condition:
                self._fetching -= 1
                if has_space:
                    self._failures = 0
                else:
                    self._queue.appendleft((entry, distance))
                    self._resume_at = monotonic() + RETRY_SECONDS

    def _publish_ended_use(self) -> None:
        """Frees the files of a window that has ended, where the next one has not begun since."""
        if self._has_ended_use:
            try:
                self._publish()
            except GlassboxError as error:  # reported when the next window begins
                logger.debug("the end of a window was not published: %s", error)

    def _try_fetch_ahead(self, entry: CacheEntry, distance: int) -> bool:
        """Fetches a file unless it is there, or being fetched; returns False if there is no space for it."""
        if self._cache.has(entry):
            with self._condition:
                self._complete.add(entry.key)
            return True
        # Nothing is evicted for windows after the next one: the files in use, which can be evicted when they
        # are needed, may be needed later again than those that could be evicted now.
        outcome = self._cache.reserve(entry, distance, should_evict=distance <= self._horizon)
        if outcome.has_evicted or outcome.state == "full":
            with self._condition:
                self._complete.clear()
        if outcome.fetch is not None:
            self._fetch(outcome.fetch)
        return outcome.state not in ("full", "busy")
