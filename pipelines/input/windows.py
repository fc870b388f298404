"""Shuffles the rows of a shard set window by window: any window is computed without those before it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Words = NDArray[np.uint64]

WORDS = 2**64  # number of different words
WORDS_PER_COUNT = 4  # words that Philox4x64 draws for one value of its counter
SORTED_ROWS = 2**22  # rows that are sorted at a time; a larger window is sorted in parts
DRAWN_ROWS = 2**18  # words that are drawn at a time
WINDOWS_IN_MEMORY = 2  # a batch may take rows from a window and from the next one


def draw_words(seed: int, epoch: int, stream: int, start: int, count: int) -> Words:
    """Draws words `start` to `start + count` of a stream of Philox4x64-10 with the key `(seed, epoch)`.

    The words before `start` are not drawn: the counter of the generator begins at the first word.
    Raw streams never change between versions of NumPy; its shuffling methods may.

    Args:
        seed: First word of the key, 0 to 2**64 - 1.
        epoch: Second word of the key.
        stream: Highest word of the counter: streams of one key are independent.
        start: Index of the first word.
        count: Number of words to draw.
    """
    skipped = start % WORDS_PER_COUNT
    key = np.array([seed, epoch], np.uint64)
    counter = np.array([start // WORDS_PER_COUNT, 0, 0, stream], np.uint64)
    return np.random.Philox(counter=counter, key=key).random_raw(skipped + count)[skipped:]


class ShardOrder:
    """The order in which one epoch visits the shards of a set, and the positions of their rows in it.

    Args:
        shard_rows: Rows of every shard, int64 `[shards]`.
        seed: Seed of the shuffling; None keeps the stored order.
        epoch: Number of the epoch.
        stream: Stream of the words of the rows; the shards use the one after it.

    Attributes:
        shards: Numbers of the shards in the order of their visit, int64 `[shards]`.
        ends: Position after the last row of each of them, int64 `[shards]`.
    """

    def __init__(self, shard_rows: Rows, seed: int | None, epoch: int, stream: int = 0) -> None:
        self.seed = seed
        self.epoch = epoch
        self.stream = stream
        self._starts = np.cumsum(shard_rows) - shard_rows
        if seed is None:
            self.shards = np.arange(len(shard_rows))
        else:
            words = draw_words(seed, epoch, stream + 1, 0, len(shard_rows))
            self.shards = np.argsort(words, kind="stable")
        self._rows = shard_rows[self.shards]
        self.ends = np.cumsum(self._rows)

    def find_ranges(self, first: int, last: int, start: int, stop: int) -> tuple[Rows, Rows]:
        """Returns first and last-plus-one row of some visited shards, in stored order, int64 `[n]` each.

        Args:
            first: Index of the first shard in the order of the visit.
            last: Index after the last shard.
            start: Position before which rows are left out.
            stop: Position from which on rows are left out.
        """
        begins = self._starts[self.shards[first:last]]
        positions = self.ends[first:last] - self._rows[first:last]
        first_rows = begins + np.maximum(start - positions, 0)
        last_rows = begins + np.minimum(stop - positions, self._rows[first:last])
        by_row = np.argsort(first_rows, kind="stable")
        return first_rows[by_row], last_rows[by_row]


class WindowedRange:
    """The rows at a range of positions of visited shards, shuffled `window` shards at a time.

    A shard across the border of two ranges is divided between them in stored order.

    Args:
        order: Order of the shards.
        start: First position of the range.
        stop: Position after the last one.
        window: Number of shards that are shuffled together; None for all of the range.
    """

    def __init__(self, order: ShardOrder, start: int, stop: int, window: int | None) -> None:
        self._order = order
        self._start = start
        self._stop = stop
        # Empty shards count, unless they come before the range.
        self._first = int(np.searchsorted(order.ends, start, side="right")) if start else 0
        last = int(np.searchsorted(order.ends, stop, side="left")) + 1
        self._last = min(last, len(order.ends)) if stop > start else self._first
        if order.seed is None:
            window = 1  # rows that are not shuffled need no more than one shard at a time
        self._window = window or max(1, self._last - self._first)
        borders = np.arange(self._first + self._window, self._last, self._window)
        ends = np.append(order.ends[borders - 1], stop) - start
        self._ends = np.minimum(ends, stop - start)  # of the windows, relative to the range
        self._cache: dict[int, _SortedRows] = {}

    def __len__(self) -> int:
        return self._stop - self._start

    def take(self, start: int, stop: int) -> Rows:
        """Returns the rows at positions `start` to `stop`, counted from the start of the range."""
        parts = [np.empty(0, np.int64)]
        position = start
        while position < stop:
            index = int(np.searchsorted(self._ends, position, side="right"))
            begin = int(self._ends[index - 1]) if index else 0
            end = min(stop, int(self._ends[index]))
            parts.append(self._sort_window(index).take(position - begin, end - begin))
            position = end
        return np.concatenate(parts)

    def iterate_windows(self, start: int) -> Iterator[tuple[int, Rows]]:
        """Yields the first position of every window, and its shards, from that of position `start` on."""
        first = int(np.searchsorted(self._ends, start, side="right"))
        for index in range(first, len(self._ends)):
            begin = int(self._ends[index - 1]) if index else 0
            if begin < self._ends[index]:
                shards_begin, shards_end = self._find_visits(index)
                yield begin, self._order.shards[shards_begin:shards_end]

    def _find_visits(self, index: int) -> tuple[int, int]:
        """Returns the range of visits that a window consists of."""
        first = self._first + index * self._window
        return first, min(first + self._window, self._last)

    def _sort_window(self, index: int) -> _SortedRows:
        if index not in self._cache:
            if len(self._cache) == WINDOWS_IN_MEMORY:
                oldest = next(iter(self._cache))
                del self._cache[oldest]
            ranges = self._order.find_ranges(*self._find_visits(index), self._start, self._stop)
            self._cache[index] = _SortedRows(self._order, *ranges)
        return self._cache[index]


class _SortedRows:
    """The rows of one window, sorted by their words; those of a large window in parts, as they are needed.

    Each part holds the words of one range of values, so that one after the other they are the whole order.
    The ranges are equally long, so that parts of random words have about `SORTED_ROWS` rows each.

    Args:
        order: Order with the key of the words.
        first_rows: First row of each range of rows, ascending, int64 `[ranges]`.
        last_rows: Row after the last of each range.
    """

    def __init__(self, order: ShardOrder, first_rows: Rows, last_rows: Rows) -> None:
        self._order = order
        # Adjacent ranges are drawn together: a generator takes as long to create as thousands of words.
        is_border = np.append(first_rows[1:] != last_rows[:-1], True)
        self._firsts = first_rows[np.roll(is_border, 1)]
        self._lasts = last_rows[is_border]
        self._count = int((last_rows - first_rows).sum())
        self._parts = max(-(-self._count // SORTED_ROWS), 1)
        self._part = -1  # the part that is in memory
        self._begin = 0  # position of its first row
        self._rows = np.empty(0, np.int64)

    def take(self, start: int, stop: int) -> Rows:
        """Returns the rows at positions `start` to `stop` of the window."""
        seed = self._order.seed
        if seed is None:
            ranges = [np.arange(first, last) for first, last in self._iterate_ranges()]
            return np.concatenate(ranges)[start:stop]
        taken = [np.empty(0, np.int64)]
        while start < stop:
            self._find_part(start, seed)
            end = min(stop, self._begin + len(self._rows))
            taken.append(self._rows[start - self._begin : end - self._begin])
            start = end
        return np.concatenate(taken)

    def _find_part(self, position: int, seed: int) -> None:
        """Sorts the part that holds a position, unless it is in memory."""
        end = self._begin + len(self._rows)
        if self._begin <= position < end:
            return
        is_next = self._part >= 0 and position == end
        self._sort_part(self._part + 1 if is_next else position * self._parts // self._count, seed)
        while position < self._begin:
            self._sort_part(self._part - 1, seed)
        while position >= self._begin + len(self._rows):
            self._sort_part(self._part + 1, seed)

    def _sort_part(self, part: int, seed: int) -> None:
        """Draws the words of all rows, and sorts the rows of one part."""
        self._rows = np.empty(0, np.int64)  # frees the memory of the part before
        self._part = part
        self._begin = 0
        lowest = np.uint64(part * WORDS // self._parts)
        highest = np.uint64((part + 1) * WORDS // self._parts - 1)
        words_of_part = [np.empty(0, np.uint64)]
        rows_of_part = [np.empty(0, np.int64)]
        for first, last in self._iterate_ranges():
            words = draw_words(seed, self._order.epoch, self._order.stream, first, last - first)
            if self._parts == 1:
                rows = np.arange(first, last)
            else:
                is_before = words < lowest
                self._begin += int(np.count_nonzero(is_before))
                positions = np.flatnonzero((words <= highest) ^ is_before)
                words = words[positions]
                rows = positions + first
            words_of_part.append(words)
            rows_of_part.append(rows)
        order = _argsort(np.concatenate(words_of_part))
        self._rows = np.concatenate(rows_of_part)[order]

    def _iterate_ranges(self) -> Iterator[tuple[int, int]]:
        """Yields first and last-plus-one row of consecutive rows in stored order, at most `DRAWN_ROWS`."""
        for first, last in zip(self._firsts.tolist(), self._lasts.tolist(), strict=True):
            for start in range(first, last, DRAWN_ROWS):
                yield start, min(start + DRAWN_ROWS, last)


def _argsort(words: Words) -> Rows:
    """Sorts words, equal ones in stored order.

    The default algorithm is several times faster than the stable one. Both differ only where words are equal,
    which is unlikely for 64 bits.
    """
    order = np.argsort(words)
    ordered = words[order]
    if (ordered[1:] == ordered[:-1]).any():
        order = np.argsort(words, kind="stable")
    return order.astype(np.int64, copy=False)
