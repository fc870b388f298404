"""Which files of a shard set a pass needs next, and which cached files make room for them; pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

HORIZON = 2  # bytes of the windows that are looked ahead, in budgets
MAX_LOOKAHEAD = 16_384  # files that are looked ahead: their table is written whenever a window is over


@dataclass(frozen=True)
class CacheEntry:
    """A file that the cache can hold.

    Attributes:
        key: Name in the cache, unique for this content of this object.
        name: Name of the object, relative to the location of its shard set.
        bytes: Size of the file.
        sha256: Digest of the content in hexadecimal.
    """

    key: str
    name: str
    bytes: int
    sha256: str


Window = Sequence[CacheEntry]


@dataclass(frozen=True)
class PlannedWindow:
    """A window of a pass.

    Attributes:
        entries: Files that are read at the same time.
        start: Number of bytes that the pass needs before it. What a window shares with the one before it
            counts once.
    """

    entries: Window
    start: int

    @cached_property
    def keys(self) -> frozenset[str]:
        """Keys of the files."""
        return frozenset(entry.key for entry in self.entries)


class Schedule:
    """The position of a pass in the sequence of its windows, and what it needs next.

    A window is in use from the first request for one of its files until `advance` says that it is over. The
    windows are read lazily: the first two at once, further ones as far as the budget of the cache makes them
    useful.

    Args:
        windows: The files of every window of the pass, in order; may be endless.
        budget: Number of bytes that the cache may take.

    Attributes:
        first: Number of the first window that is not over.
        last: Number of the last window of which a file was requested; -1 before the first request.
    """

    def __init__(self, windows: Iterable[Window], budget: int) -> None:
        self.first = 0
        self.last = -1
        self._source = iter(windows)
        self._is_complete = False  # whether the source has ended
        self._budget = budget
        self._windows: deque[PlannedWindow] = deque()  # from number `first` on
        self._start = 0  # of the window that is read next
        self._before: frozenset[str] = frozenset()  # keys of the window that was read last
        self._files = 0  # in these windows
        self._bytes = 0  # of these windows
        self._uses: dict[str, int] = {}  # uses of every file in these windows
        self._distinct = 0  # bytes of the different files in these windows
        self._look_ahead()

    def request(self, keys: Collection[str]) -> list[CacheEntry]:
        """Notes that files are needed now.

        Args:
            keys: Files that are about to be read. Those outside of the windows looked ahead have no effect.

        Returns:
            The files of the windows that were not in use before.
        """
        missing = set(keys)
        before = self.last
        for number, window in enumerate(self._windows, self.first):
            if not missing:
                break
            if not missing.isdisjoint(window.keys):
                missing -= window.keys
                self.last = max(self.last, number)
        new: list[CacheEntry] = []
        for number in range(max(before + 1, self.first), self.last + 1):
            new += self._windows[number - self.first].entries
        if new:
            self._look_ahead()
        return new

    def advance(self, window: int) -> bool:
        """Notes that all windows before number `window` are over; returns whether any of them was not."""
        if window <= self.first:
            return False
        while self.first < window and (self._windows or self._read_window()):
            for entry in self._windows.popleft().entries:
                self._files -= 1
                self._bytes -= entry.bytes
                self._uses[entry.key] -= 1
                if not self._uses[entry.key]:
                    del self._uses[entry.key]
                    self._distinct -= entry.bytes
            self.first += 1
        self.last = max(self.last, self.first - 1)
        self._look_ahead()
        return True

    def list_current(self) -> list[CacheEntry]:
        """Returns the files of the windows in use, each once; of the last two, if a batch needs more.

        Such a batch borrows what it needs of the earlier ones.
        """
        in_use = self._count_in_use()
        windows = (self._windows[index] for index in range(max(in_use - 2, 0), in_use))
        return list({entry.key: entry for window in windows for entry in window.entries}.values())

    def iterate_upcoming(self) -> Iterator[tuple[PlannedWindow, int]]:
        """Yields the windows that are in use or needed next, in order, each with its distance.

        The distance is the number of bytes that are needed before it, from the windows in use on.
        """
        for window in self._windows:
            yield window, window.start - self._windows[0].start

    def find_next_uses(self) -> dict[str, int]:
        """Returns the distance of the next window that needs a file, for all files that are looked ahead."""
        next_uses: dict[str, int] = {}
        for window, distance in reversed(list(self.iterate_upcoming())):
            next_uses |= dict.fromkeys(window.keys, distance)
        return next_uses

    def find_horizon(self) -> int:
        """Returns the distance of the first window that is not in use."""
        in_use = self._count_in_use()
        return self._windows[in_use].start - self._windows[0].start if len(self._windows) > in_use else 0

    def find_need(self) -> int:
        """Returns the bytes that the next two windows take together."""
        while len(self._windows) < 2 and self._read_window():
            pass
        entries = {entry.key: entry for window in [*self._windows][:2] for entry in window.entries}
        return sum(entry.bytes for entry in entries.values())

    def _count_in_use(self) -> int:
        return self.last - self.first + 1

    def _look_ahead(self) -> None:
        """Reads windows until two are known after those in use, and as many as can change what is evicted.

        These are windows of twice the budget: what is needed later than that is evicted first anyway. Where
        all files fit, they are the windows in which every file occurs twice.
        """
        while True:
            has_two = len(self._windows) >= self._count_in_use() + 2
            is_far = self._bytes >= HORIZON * self._budget or self._bytes >= 2 * self._distinct > 0
            if has_two and (is_far or self._files >= MAX_LOOKAHEAD):
                return
            if not self._read_window():
                return

    def _read_window(self) -> bool:
        """Reads one more window; returns False at the end."""
        if self._is_complete:
            return False
        window = next(self._source, None)
        if window is None:
            self._is_complete = True
            return False
        planned = PlannedWindow(window, self._start)
        self._windows.append(planned)
        self._start += sum(entry.bytes for entry in window if entry.key not in self._before)
        self._before = planned.keys
        for entry in window:
            self._files += 1
            self._bytes += entry.bytes
            uses = self._uses.get(entry.key, 0)
            self._uses[entry.key] = uses + 1
            if not uses:
                self._distinct += entry.bytes
        return True


@dataclass(frozen=True)
class CachedFile:
    """A complete file in the cache.

    Attributes:
        key: Name in the cache.
        bytes: Size of the file.
        used_at: Time of the last use, in nanoseconds since 1970.
    """

    key: str
    bytes: int
    used_at: int


def choose_victims(
    cached: Iterable[CachedFile],
    protected: Collection[str],
    next_use: Mapping[str, int],
    needed: int,
    distance: int | None,
) -> list[CachedFile] | None:
    """Chooses the files to evict for a new one: those that are needed last (Belady, 1966).

    Args:
        cached: All complete files.
        protected: Files in use, which are never evicted.
        next_use: Number of bytes that are needed before each file; files that are in no plan are missing,
            and are evicted first, the one that was used longest ago before the others.
        needed: Number of bytes to free.
        distance: Distance of the new file, which replaces only files that are needed later; None if it is
            needed now and replaces any.

    Returns:
        Files of at least `needed` bytes, none of them superfluous; None if there are not enough.
    """
    if needed <= 0:
        return []
    victims: list[CachedFile] = []
    freed = 0
    for file in _rank_evictable(cached, protected, next_use, distance):
        if freed >= needed:
            break
        victims.append(file)
        freed += file.bytes
    if freed < needed:
        return None
    for file in reversed(victims):  # a large one at the end may make earlier, smaller ones superfluous
        if freed - file.bytes >= needed:
            victims.remove(file)
            freed -= file.bytes
    return victims


def _rank_evictable(
    cached: Iterable[CachedFile],
    protected: Collection[str],
    next_use: Mapping[str, int],
    distance: int | None,
) -> list[CachedFile]:
    """Returns the files that may be evicted, those that are needed last first."""
    unplanned = []
    planned = []
    for file in cached:
        if file.key in protected:
            continue
        use = next_use.get(file.key)
        if use is None:
            unplanned.append(file)
        elif distance is None or use > distance:
            planned.append(file)
    unplanned.sort(key=lambda file: (file.used_at, file.key))
    planned.sort(key=lambda file: (-next_use[file.key], file.key))
    return [*unplanned, *planned]
