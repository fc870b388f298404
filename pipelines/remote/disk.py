"""The shard cache on disk, shared by the processes of a host: complete files, fetches in progress, and users.

Processes agree through kernel locks, which are free as soon as their owner ends, however it ends:

    lock                       held while the folder is read to decide something, and changed
    sets/SET/location          URI of a shard set
    sets/SET/fetched.json      files and bytes that were ever fetched for it
    sets/SET/DIGEST-NAME       a complete, verified file
    fetches/SET~DIGEST-NAME/   a file that is being fetched; its `lock` is held by the process that fetches it
    users/TOKEN.lock, .json    a pass over a shard set, or what a training claims; the lock is held as long as
                               it lives
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import time_ns
from typing import Any, Literal

from pipelines.errors import ConfigError
from pipelines.locks import create_lock, try_lock
from pipelines.remote.cache_errors import NO_SPACE, report_folder_errors
from pipelines.remote.folder import Budget, find_cache_folder, read_budget
from pipelines.remote.schedule import CachedFile, CacheEntry, choose_victims
from pipelines.remote.uri import Uri
from pipelines.remote.users import Claim, UserTable, count_claimed, read_users
from pipelines.storage import hash_json, read_bounded, write_atomically

FOLDER = "shards"  # in the cache folder
LOCATION = "location"
FETCHED = "fetched.json"
RESERVATION = "reservation.json"
SPARE_BYTES = 65_536  # of the disk that fetches leave free, for the tables of users
MAX_FETCHES = 8  # files of a host that are fetched ahead of use at a time


@dataclass(frozen=True)
class SetInfo:
    """What the cache holds of one shard set.

    Attributes:
        location: URI of the shard set.
        files: Number of complete files.
        bytes: Size of these files together.
        users: The passes that use it now.
    """

    location: str
    files: int
    bytes: int
    users: tuple[UserTable, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of the attempt to start a fetch.

    Attributes:
        state: `complete`: the file is in the cache. `fetching`: another thread or process fetches it. `full`:
            nothing can be evicted for it now. `busy`: enough files are fetched ahead already. `reserved`:
            the caller must fetch it.
        fetch: The fetch, if `reserved`.
        blockers: The users whose files take the space, if `full`.
        needed: Number of bytes of all files in use with the new one, if `full`.
        is_disk_full: Whether the disk has no space although the budget has, if `full`.
        has_evicted: Whether other files were evicted.
    """

    state: Literal["complete", "fetching", "full", "busy", "reserved"]
    fetch: Fetch | None = None
    blockers: tuple[UserTable, ...] = ()
    needed: int = 0
    is_disk_full: bool = False
    has_evicted: bool = False


@dataclass(frozen=True)
class Fetch:
    """Space in the cache for a file that the caller fetches.

    Attributes:
        entry: File that the space is for.
        folder: Folder of the fetch, which holds nothing but the file and what is needed to fetch it.
        path: Path that the file is fetched to.
        descriptor: Open file that holds the lock of the fetch.
    """

    entry: CacheEntry
    folder: Path
    path: Path
    descriptor: int


class CacheFolder:
    """The files of the shard cache.

    Args:
        folder: Existing folder of the shard cache.
        budget: Bytes that the files may take.

    Attributes:
        folder: Folder of the shard cache.
        budget: Bytes that the files may take.
    """

    def __init__(self, folder: Path, budget: Budget) -> None:
        self.folder = folder
        self.budget = budget
        self._sets = folder / "sets"
        self._fetches = folder / "fetches"
        self._users = folder / "users"
        for path in (self._sets, self._fetches, self._users):
            path.mkdir(parents=True, exist_ok=True)

    def add_set(self, location: Uri) -> str:
        """Creates the folder of a shard set; returns its name."""
        # The name is for people: two sets whose URIs end alike have different digests.
        name = f"{location.name[:40]}-{_digest_location(str(location))}".replace("~", "-")
        path = self._sets / name
        with self._exclusive():
            path.mkdir(exist_ok=True)
            if _read_location(path) != str(location):
                with suppress(OSError):  # it is only shown to people
                    write_atomically(path / LOCATION, str(location), durable=False)
        return name

    def find(self, entry: CacheEntry) -> Path | None:
        """Returns the path of a file if it is complete, else None."""
        return self._sets / entry.key if self.has(entry) else None

    def has(self, entry: CacheEntry) -> bool:
        """Tells whether a file is complete."""
        return self._read_status(entry) is not None

    def _read_status(self, entry: CacheEntry) -> os.stat_result | None:
        try:
            status = os.stat(f"{self._sets}/{entry.key}")  # every batch asks: faster than to build a `Path`
        except FileNotFoundError:
            return None
        return status if status.st_size == entry.bytes else None

    def reserve(self, entry: CacheEntry, distance: int | None = None, should_evict: bool = True) -> Outcome:
        """Reserves space for a file that is about to be fetched, and evicts others for it.

        Args:
            entry: File that is needed.
            distance: Number of bytes that are needed before it, if it is fetched ahead; None if a thread is
                waiting for it.
            should_evict: Whether other files may be evicted.
        """
        with self._exclusive():
            if self.has(entry):
                return Outcome("complete")
            # A file of another size is damaged, such as by a power failure.
            (self._sets / entry.key).unlink(missing_ok=True)
            fetches = self._list_fetches()
            if entry.key in fetches:
                return Outcome("fetching")
            if distance is not None and len(fetches) >= MAX_FETCHES:
                return Outcome("busy")

            cached = list(self._list_complete())
            needed = entry.bytes + sum(fetches.values())
            excess = sum(file.bytes for file in cached) + needed - self.budget.bytes
            lack = needed - self._count_free()  # fetches in progress have not written all of their bytes
            if excess > 0 or lack > 0:
                users = list(read_users(self._users))
                required = max(excess, lack)
                victims = _choose_victims(cached, users, required, distance) if should_evict else None
                if victims is None:
                    in_use = {key for user in users for key in user.in_use} - {entry.key}
                    return Outcome(
                        "full",
                        blockers=tuple(user for user in users if user.in_use),
                        needed=needed + sum(file.bytes for file in cached if file.key in in_use),
                        is_disk_full=excess <= 0,
                    )
                for victim in victims:
                    (self._sets / victim.key).unlink(missing_ok=True)
            return Outcome("reserved", self._start_fetch(entry), has_evicted=max(excess, lack) > 0)

    def evict_for(self, needed: int) -> bool:
        """Evicts files that are not in use, `needed` bytes of them; returns whether there were enough."""
        with self._exclusive():
            return self._evict(needed)

    def _evict(self, needed: int) -> bool:
        victims = _choose_victims(list(self._list_complete()), list(read_users(self._users)), needed, None)
        for victim in victims or ():
            (self._sets / victim.key).unlink(missing_ok=True)
        return victims is not None

    def shrink(self) -> None:
        """Evicts files that are not in use until budget and disk suffice: either may have become smaller."""
        excess = max(self.count_bytes() - self.budget.bytes, -self._count_free())
        if excess > 0:
            self.evict_for(excess)

    def _count_free(self) -> int:
        """Returns the bytes of the disk that may be taken; negative if fewer are left than are spared."""
        return shutil.disk_usage(self.folder).free - SPARE_BYTES

    def complete(self, fetch: Fetch) -> None:
        """Moves a fetched, verified file to its place, and ends the fetch."""
        path = self._sets / fetch.entry.key
        with self._exclusive():
            os.utime(fetch.path, ns=(time_ns(), time_ns()))  # the kernel's own clock is coarser
            os.replace(fetch.path, path)
            self._count_fetch(path.parent, fetch.entry.bytes)
            self._end_fetch(fetch)

    def abandon(self, fetch: Fetch) -> None:
        """Ends a fetch that has failed."""
        with self._exclusive():
            self._end_fetch(fetch)

    def wait_for_fetch(self, entry: CacheEntry) -> None:
        """Waits until nobody fetches a file any more: it is complete, or the fetch has failed."""
        try:
            descriptor = os.open(self._fetch_folder(entry.key) / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def remove(self, entry: CacheEntry, inode: int) -> None:
        """Removes a damaged file, unless somebody has already replaced it.

        Args:
            entry: The damaged file.
            inode: Inode of the file that was found damaged.
        """
        path = self._sets / entry.key
        with self._exclusive(), suppress(FileNotFoundError):
            if path.stat().st_ino == inode:
                path.unlink()

    def touch(self, entries: Iterable[CacheEntry]) -> None:
        """Sets the time of the last use of some files to now."""
        for entry in entries:
            path = self._sets / entry.key
            with suppress(OSError):  # it may not be there yet, or belong to another user
                os.utime(path, ns=(time_ns(), path.stat().st_mtime_ns))

    def read_fetch_time(self, entry: CacheEntry) -> int | None:
        """Returns when a complete file was fetched, in nanoseconds since 1970; None if it is not complete."""
        status = self._read_status(entry)
        return None if status is None else status.st_mtime_ns

    def read_fetched(self, name: str) -> tuple[int, int]:
        """Returns the number of files, and of bytes, that were ever fetched for a set."""
        return _read_counters(self._sets / name / FETCHED)

    def open_user(self, location: Uri) -> User:
        """Registers a pass of this process over a shard set."""
        user = self._build_user(str(location))
        with report_folder_errors(self.folder), self._exclusive():
            user.create()
        return user

    def _build_user(self, location: str, claim: Claim | None = None) -> User:
        token = f"{os.getpid()}-{secrets.token_hex(4)}"
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:3]])[:60].strip() or "python"
        return User(self, token, UserTable(os.getpid(), command, location, claim=claim))

    def claim(self, claim: Claim) -> tuple[User | None, list[UserTable]]:
        """Registers what a training needs, unless it exceeds the cache together with the other trainings.

        Returns:
            The claim, to be closed with the training, or None if there is no space; and the other trainings.
        """
        with report_folder_errors(self.folder), self._exclusive():
            users = read_users(self._users)
            others = [user for user in users if user.claim and user.claim.group != claim.group]
            claims = [claim, *(user.claim for user in others if user.claim)]
            if count_claimed(claims) > min(each.budget for each in claims):
                return None, others
            user = self._build_user(next(iter(claim.needs)), claim)
            user.create()
        return user, others

    def list_sets(self) -> list[SetInfo]:
        """Returns what the cache holds of every shard set, by location."""
        with self._exclusive():
            files = list(self._list_complete())
            users = list(read_users(self._users))
        sets = []
        for folder in self._list_set_folders():
            location = _read_location(folder)
            own = [file for file in files if file.key.startswith(f"{folder.name}/")]
            own_users = tuple(user for user in users if user.location == location)
            sets.append(SetInfo(location, len(own), sum(file.bytes for file in own), own_users))
        return sorted(sets, key=lambda info: info.location)

    def count_bytes(self) -> int:
        """Returns the bytes of all files, with those reserved for fetches in progress."""
        with self._exclusive():
            return sum(file.bytes for file in self._list_complete()) + sum(self._list_fetches().values())

    def clear(self, location: str | None) -> int:
        """Removes the files of a shard set, or of all.

        Args:
            location: URI of the set; None for all sets.

        Returns:
            Number of bytes that were removed.

        Raises:
            ConfigError: A process uses them.
        """
        removed = 0
        with self._exclusive():
            self._list_fetches()  # removes those of dead processes
            users = [user for user in read_users(self._users) if location in (None, user.location)]
            if users:
                raise ConfigError(
                    "a cache that is not in use",
                    f"{users[0].location} is used by {', '.join(sorted({str(user) for user in users}))}",
                    "wait until it ends, or end it",
                )
            for file in list(self._list_complete()):
                folder = (self._sets / file.key).parent
                if location in (None, _read_location(folder)):
                    removed += file.bytes
            for folder in self._list_set_folders():
                if location in (None, _read_location(folder)):
                    shutil.rmtree(folder)
        return removed

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Holds the lock of the folder; for moments only, because all processes of the host share it."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _list_set_folders(self) -> list[Path]:
        return [path for path in self._sets.iterdir() if path.is_dir()]

    def _list_complete(self) -> Iterator[CachedFile]:
        for folder in self._list_set_folders():
            with os.scandir(folder) as files:
                for file in files:
                    if file.name.startswith(".tmp-"):
                        # Written under the lock of the folder, by a process that was killed.
                        Path(file.path).unlink(missing_ok=True)
                        continue
                    if file.name in (LOCATION, FETCHED):
                        continue
                    status = file.stat()
                    yield CachedFile(f"{folder.name}/{file.name}", status.st_size, status.st_atime_ns)

    def _list_fetches(self) -> dict[str, int]:
        """Returns the bytes reserved for each fetch in progress, by key; removes those of dead processes."""
        fetches = {}
        for folder in list(self._fetches.iterdir()):
            descriptor = try_lock(folder / "lock")
            if descriptor is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(descriptor)
                continue
            reservation = json.loads((folder / RESERVATION).read_text())
            fetches[reservation["key"]] = reservation["bytes"]
        return fetches

    def _fetch_folder(self, key: str) -> Path:
        return self._fetches / key.replace("/", "~")

    def _start_fetch(self, entry: CacheEntry) -> Fetch:
        folder = self._fetch_folder(entry.key)
        folder.mkdir()
        try:
            descriptor = create_lock(folder / "lock")
            # Without the lock, the folder of a process that dies here is removed by the next one.
            (folder / RESERVATION).write_text(json.dumps({"key": entry.key, "bytes": entry.bytes}))
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return Fetch(entry, folder, folder / Path(entry.key).name, descriptor)

    def _end_fetch(self, fetch: Fetch) -> None:
        # Before the lock is released, so that those waiting for it find the folder gone.
        shutil.rmtree(fetch.folder, ignore_errors=True)
        os.close(fetch.descriptor)

    def _count_fetch(self, folder: Path, size: int) -> None:
        files, count = _read_counters(folder / FETCHED)
        content = json.dumps({"files": files + 1, "bytes": count + size})
        with suppress(OSError):  # on a full disk; the file itself is in its place
            descriptor = os.open(folder / FETCHED, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                # In place (see `User._write`): the numbers only grow, so that readers find a whole line.
                os.pwrite(descriptor, content.encode(), 0)
                os.ftruncate(descriptor, len(content))  # a damaged file may have been longer
            finally:
                os.close(descriptor)


class User:
    """A pass over a shard set, visible to all processes of the host while it is open.

    Args:
        cache: The folder of the cache.
        token: Unique name of the user.
        table: Its process and shard set.
    """

    def __init__(self, cache: CacheFolder, token: str, table: UserTable) -> None:
        self._cache = cache
        self._path = cache.folder / "users" / f"{token}.json"
        self._table = asdict(table)
        self._descriptor: int | None = None

    def create(self) -> None:
        """Writes the table and takes the lock; the caller holds the lock of the folder."""
        self._descriptor = create_lock(self._path.with_suffix(".lock"))
        try:
            self._write()
        except OSError:
            self._path.with_suffix(".lock").unlink()
            os.close(self._descriptor)
            self._descriptor = None
            raise

    def publish(self, in_use: Sequence[str], next_use: Mapping[str, int]) -> None:
        """Replaces the files in use, and those needed later.

        When it returns, a file in use that is complete stays so.
        """
        self._table |= {"in_use": list(in_use), "next_use": dict(next_use)}
        with report_folder_errors(self._cache.folder), self._cache._exclusive():
            try:
                self._write()
            except OSError as error:
                if error.errno not in NO_SPACE or not self._cache._evict(SPARE_BYTES):
                    raise
                self._write()

    def close(self) -> None:
        """Ends the pass: its files may be evicted.

        Takes no lock, because the garbage collector may call this in a thread that holds that of the folder.
        """
        if self._descriptor is None:
            return
        self._path.unlink(missing_ok=True)
        self._path.with_suffix(".lock").unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None

    def _write(self) -> None:
        # Renaming over a file makes ext4 write the new one to disk at once, which takes milliseconds. The
        # table may be missing for a moment, because others read it under the lock of the folder only.
        temporary = self._path.with_name(f".tmp-{self._path.name}")
        temporary.write_text(json.dumps(self._table))
        self._path.unlink(missing_ok=True)
        temporary.rename(self._path)


def open_cache(cache_gb: float | None = None) -> CacheFolder:
    """Opens the shard cache of this host, and creates its folder if it is missing.

    Args:
        cache_gb: Budget from the configuration in units of 10**9 bytes; None if it is not set.

    Raises:
        ConfigError: The folder cannot be written, or the budget is not a number.
    """
    folder = find_cache_folder() / FOLDER
    with report_folder_errors(folder):
        cache = CacheFolder(folder, Budget(0, "not known yet"))
        cache.budget = read_budget(cache_gb, folder, cache.count_bytes())
    return cache


def _choose_victims(
    cached: Sequence[CachedFile], users: Sequence[UserTable], needed: int, distance: int | None
) -> list[CachedFile] | None:
    """Chooses the files to evict, given what all users need; see `choose_victims`."""
    protected: set[str] = set()
    next_use: dict[str, int] = {}
    for user in users:
        protected.update(user.in_use)
        for key, use in user.next_use.items():
            next_use[key] = min(use, next_use.get(key, use))
    return choose_victims(cached, protected, next_use, needed, distance)


def _read_location(folder: Path) -> str:
    """Reads the URI of a set; returns the name of its folder if the file is missing or damaged."""
    try:
        location = read_bounded(folder / LOCATION).decode()
    except (OSError, ValueError):
        return folder.name
    return location if folder.name.endswith(_digest_location(location)) else folder.name


def _digest_location(location: str) -> str:
    return hash_json(location)[:12]


def _read_counters(path: Path) -> tuple[int, int]:
    """Reads the numbers of files and bytes that were fetched; zeros if the file is missing or damaged."""
    try:
        content: dict[str, Any] = json.loads(read_bounded(path))
        return int(content["files"]), int(content["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0
