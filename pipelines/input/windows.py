"""Shuffles the rows of a shard set window by window: any window is computed without those before it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Words = NDArray[np.uint64]

WORDS_PER_COUNT = 4  # words that Philox4x64 draws for one value of its counter
SORTED_ROWS = 2**22  # rows that are sorted at a time; a larger window is sorted in parts
PREFIX_BITS = 16  # leading bits of a word by which the rows of a large window are divided into parts
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

    The parts have the same leading bits of the words, so that one after the other they are the whole order.

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
        self._ends = np.array([int((last_rows - first_rows).sum())])  # of the parts
        self._prefixes = np.array([2**PREFIX_BITS])  # leading bits that end the parts
        self._part = -1
        self._rows = np.empty(0, np.int64)
        if order.seed is not None and self._ends[0] > SORTED_ROWS:
            self._divide()

    def take(self, start: int, stop: int) -> Rows:
        """Returns the rows at positions `start` to `stop` of the window."""
        if self._order.seed is None:
            return np.concatenate([rows for _, rows in self._iterate_rows()])[start:stop]
        parts = [np.empty(0, np.int64)]
        while start < stop:
            part = int(np.searchsorted(self._ends, start, side="right"))
            begin = int(self._ends[part - 1]) if part else 0
            end = min(stop, int(self._ends[part]))
            if part != self._part:
                self._sort_part(part)
            parts.append(self._rows[start - begin : end - begin])
            start = end
        return np.concatenate(parts)

    def _divide(self) -> None:
        """Chooses parts of at most about `SORTED_ROWS` rows."""
        counts = np.zeros(2**PREFIX_BITS, np.int64)
        for words, _ in self._iterate_rows():
            counts += np.bincount(_find_prefixes(words), minlength=len(counts))
        ends = np.cumsum(counts)
        parts = -(-int(ends[-1]) // SORTED_ROWS)
        borders = np.searchsorted(ends, ends[-1] * np.arange(1, parts + 1) // parts)
        self._prefixes = np.unique(borders) + 1
        self._ends = ends[self._prefixes - 1]

    def _sort_part(self, part: int) -> None:
        self._rows = np.empty(0, np.int64)  # frees the memory of the part before
        first_prefix = int(self._prefixes[part - 1]) if part else 0
        last_prefix = int(self._prefixes[part])
        words_of_part = []
        rows_of_part = []
        for words, rows in self._iterate_rows():
            if len(self._ends) > 1:
                prefixes = _find_prefixes(words)
                is_in_part = (prefixes >= first_prefix) & (prefixes < last_prefix)
                words = words[is_in_part]
                rows = rows[is_in_part]
            words_of_part.append(words)
            rows_of_part.append(rows)
        if rows_of_part:
            order = _argsort(np.concatenate(words_of_part))
            self._rows = np.concatenate(rows_of_part)[order]
        self._part = part

    def _iterate_rows(self) -> Iterator[tuple[Words, Rows]]:
        """Yields the words and numbers of all rows in stored order, at most `SORTED_ROWS` at a time."""
        order = self._order
        for first, last in zip(self._firsts.tolist(), self._lasts.tolist(), strict=True):
            for start in range(first, last, SORTED_ROWS):
                stop = min(start + SORTED_ROWS, last)
                words = np.empty(0, np.uint64)
                if order.seed is not None:
                    words = draw_words(order.seed, order.epoch, order.stream, start, stop - start)
                yield words, np.arange(start, stop)


def _find_prefixes(words: Words) -> NDArray[np.int64]:
    """Returns the leading bits of words."""
    return (words >> np.uint64(64 - PREFIX_BITS)).astype(np.int64)


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
