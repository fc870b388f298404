"""Decides which rows make up which batch, as a pure function of seed, epoch and step."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from pipelines.errors import ConfigError, name_divisors, name_multiples
from pipelines.input.mixture import Mixture
from pipelines.input.windows import Rows, ShardOrder, WindowedRange

COPY_STRIDE = 2**40  # above the number of any row, below the sign
PADDING = -1  # row number that fills up the last batch of an epoch
SEED_LIMIT = 2**64  # a seed is one 64-bit word of the generator's key

# Step in which a window begins, the lane and set that it belongs to, and its shards.
WindowEvent = tuple[int, tuple[int, int], Rows]


@dataclass(frozen=True)
class OrderSpec:
    """What the order of a split depends on, except for the number of the epoch.

    Attributes:
        shard_rows: Rows of every shard, int64 `[shards]`, for each set; all sets together are numbered in
            this order, rows and shards alike.
        global_batch: Examples per step over all workers.
        seed: Seed of the shuffling, 0 to 2**64 - 1; None keeps the stored order of all sets.
        window: Number of shards that are shuffled together, over all lanes and for each set; None for all.
        lanes: Number of lanes. Each fills its own part of every batch, from its own shards.
        draws: Images of every set in an epoch; None for every row once.
        repeats: Times that each image of an epoch occurs in it, with a seed; not for a mix. An epoch has as
            many examples as without, of a part of the images; the following epochs take the others.

    Raises:
        ConfigError: The seed or the window is out of range, the lanes do not divide batch or window, or the
            images of a mix are repeated.
    """

    shard_rows: tuple[Rows, ...]
    global_batch: int
    seed: int | None = None
    window: int | None = None
    lanes: int = 1
    draws: tuple[int, ...] | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ConfigError(
                "a window of at least 1 shard", f"window={self.window}", "choose a larger window"
            )
        if self.seed is not None:
            check_seed(self.seed)
        check_lanes(self.lanes, self.global_batch, self.window)
        if self.repeats > 1 and self.draws is not None:
            raise ConfigError(
                "one shard set where images are repeated",
                f"data.repeats={self.repeats} with data.mix",
                "use data.repeats=1, or leave data.mix out",
            )

    @property
    def rows(self) -> int:
        """Number of examples in an epoch."""
        if self.draws is not None and self.seed is not None:
            return sum(self.draws)
        return sum(int(rows.sum()) for rows in self.shard_rows)


class EpochOrder:
    """The rows of every step of one epoch, as a pure function of `OrderSpec` and the epoch.

    The shards of a set are visited in a random order. The rows of `window` shards in a row are shuffled
    together: they are sorted by one 64-bit word per row, from the raw stream of Philox4x64-10 with the key
    `(seed, epoch)`. Only the windows that a step needs are computed.

    With several lanes, the visited shards are divided into one range of equal length for each lane. Lane `l`
    fills positions `l * B` to `(l + 1) * B` of every batch, `B = global_batch / lanes`. A worker reads the
    shards of the lanes in its slice of the batch, and those at the two ends of its range in part.

    A set of a mix that is not drawn completely is continued in the next epoch where this one ends, and is
    shuffled again when all of its rows have been drawn. So is a set whose images are repeated (Hoffer et al.,
    "Augment your batch", 2019; Berman et al., "MultiGrain", 2019): the examples of an epoch are `repeats`
    copies of each of its images, next to each other. Within the part of a lane in a batch, the first copies
    of all images precede the second ones, so that images that are mixed in pairs differ.

    Args:
        spec: What the order depends on.
        epoch: Number of the epoch, from 0.

    Attributes:
        steps: Number of batches; the last one may be padded.
    """

    def __init__(self, spec: OrderSpec, epoch: int) -> None:
        self._spec = spec
        self._epoch = epoch
        self.steps = steps_per_epoch(spec.rows, spec.global_batch)
        self._lane_size = spec.global_batch // spec.lanes
        self._lane_rows = self._count_lane_rows()
        self._mixture: Mixture | None = None
        sets = (np.concatenate(spec.shard_rows),) if spec.seed is None else spec.shard_rows
        self._repeats = 1 if spec.seed is None else spec.repeats
        lane_draws = -(-self._lane_rows // self._repeats)
        self._first_draws = np.cumsum([0, *lane_draws])  # of every lane, and the one after the last
        draws = tuple(int(rows.sum()) for rows in sets)
        if self._repeats > 1:
            draws = (int(self._first_draws[-1]),)
        if spec.seed is not None and spec.draws is not None:
            draws = spec.draws
            self._mixture = Mixture(draws, spec.seed, epoch)
        first_shards = np.cumsum([0, *(len(rows) for rows in sets)])
        first_rows = np.cumsum([0, *(int(rows.sum()) for rows in sets)])
        self._sets = [
            _SetStream(spec, rows, draws[index], 2 * index, int(first_shards[index]), int(first_rows[index]))
            for index, rows in enumerate(sets)
        ]
        self._lanes: dict[int, _Lane] = {}

    def find_rows(self, steps: range, worker: int = 0, workers: int = 1) -> Rows:
        """Returns the rows of a worker's contiguous part of some global batches.

        Args:
            steps: Consecutive steps of the epoch.
            worker: Rank of the worker, 0 to `workers` - 1.
            workers: Number of workers that share the batch.

        Returns:
            int64 `[len(steps), global_batch // workers]`; `PADDING` beyond the end of the epoch.

        Raises:
            ConfigError: The batch cannot be divided evenly.
        """
        return self._collect(_Lane.take, PADDING, steps, worker, workers)

    def find_copies(self, steps: range, worker: int = 0, workers: int = 1) -> Rows:
        """Returns which copy of its row each example is, from 0; see `find_rows`."""
        return self._collect(_Lane.take_copies, 0, steps, worker, workers)

    def _collect(
        self, take: Callable[[_Lane, int, int], Rows], padding: int, steps: range, worker: int, workers: int
    ) -> Rows:
        """Collects something for each example of a worker's part of some batches.

        Args:
            take: Returns it for a range of positions of a lane.
            padding: Value beyond the end of the epoch.
            steps: Consecutive steps of the epoch.
            worker: Rank of the worker.
            workers: Number of workers that share the batch.
        """
        size = batch_per_worker(self._spec.global_batch, workers)
        start = worker * size
        first, last = self._find_lanes(worker, workers)
        parts = []
        for index in range(first, last):
            lane = self._open_lane(index)
            begin = steps.start * self._lane_size
            end = steps.stop * self._lane_size
            values = take(lane, min(begin, lane.rows), min(end, lane.rows))
            padded = np.pad(values, (0, end - begin - len(values)), constant_values=padding)
            parts.append(padded.reshape(len(steps), self._lane_size))
        offset = start - first * self._lane_size
        return np.concatenate(parts, axis=1)[:, offset : offset + size]

    def iterate_windows(
        self, start_step: int = 0, worker: int = 0, workers: int = 1
    ) -> Iterator[tuple[int, Rows]]:
        """Iterates over the shards that a worker reads, in the order in which they are needed.

        Args:
            start_step: First step that is read.
            worker: Rank of the worker, 0 to `workers` - 1.
            workers: Number of workers that share the batch.

        Yields:
            Step, and numbers of the shards that are read from this step on, those that are new last,
            int64 `[n]`, whenever a window begins in one of the lanes or sets. The batch of this step may
            also take rows from the shards of the step before, whose window ends in it.
        """
        events = []
        for index in range(*self._find_lanes(worker, workers)):
            lane = self._open_lane(index)
            events += lane.list_windows(min(start_step * self._lane_size, lane.rows))
        current: dict[tuple[int, int], Rows] = {}
        by_step = groupby(heapq.merge(*events, key=itemgetter(0)), key=itemgetter(0))
        for step, group in by_step:
            new: dict[tuple[int, int], list[Rows]] = {}
            for _, key, shards in group:
                current.pop(key, None)
                new.setdefault(key, []).append(shards)
            current |= {key: np.concatenate(parts) for key, parts in new.items()}
            yield step, np.concatenate(list(current.values()))

    def _count_lane_rows(self) -> Rows:
        """Counts the rows of every lane: as many as its positions, so that all padding is at the end."""
        lanes = np.arange(self._spec.lanes)
        if self.steps == 0:
            return np.zeros(len(lanes), np.int64)
        full_steps = self.steps - 1
        remaining = self._spec.rows - full_steps * self._spec.global_batch - lanes * self._lane_size
        rows: Rows = full_steps * self._lane_size + np.clip(remaining, 0, self._lane_size)
        return rows

    def _find_lanes(self, worker: int, workers: int) -> tuple[int, int]:
        """Returns the first lane of a worker's slice, and the one after the last."""
        size = batch_per_worker(self._spec.global_batch, workers)
        return worker * size // self._lane_size, -(-(worker + 1) * size // self._lane_size)

    def _open_lane(self, index: int) -> _Lane:
        if index not in self._lanes:
            draws = range(int(self._first_draws[index]), int(self._first_draws[index + 1]))
            self._lanes[index] = _Lane(
                index,
                self._epoch,
                self._sets,
                self._mixture,
                draws,
                _LaneLayout(int(self._lane_rows[index]), self._lane_size, self._repeats),
            )
        return self._lanes[index]


class _SetStream:
    """The rows of one set, pass after pass without end; its passes are shuffled like epochs.

    Args:
        spec: What the order depends on.
        shard_rows: Rows of every shard of the set.
        draws: Rows that an epoch takes from the set.
        stream: Stream of the words of the set.
        first_shard: Number of its first shard among those of all sets.
        first_row: Number of its first row among those of all sets.
    """

    def __init__(
        self, spec: OrderSpec, shard_rows: Rows, draws: int, stream: int, first_shard: int, first_row: int
    ) -> None:
        self._spec = spec
        self._shard_rows = shard_rows
        self._stream = stream
        self.draws = draws
        self.rows = int(shard_rows.sum())
        self.first_shard = first_shard
        self.first_row = first_row
        self._open_order = lru_cache(maxsize=2)(self._shuffle_shards)

    def _shuffle_shards(self, number: int) -> ShardOrder:
        return ShardOrder(self._shard_rows, self._spec.seed, number, self._stream)

    def open_range(self, number: int, start: int, stop: int) -> WindowedRange:
        """Opens a range of positions of one pass over the set.

        Args:
            number: Number of the pass, from 0.
            start: First position that is read.
            stop: Position after the last one.
        """
        window = self._spec.window
        if window is not None:
            window //= self._spec.lanes
        return WindowedRange(self._open_order(number), start, stop, window)


class _LaneDraws:
    """The rows that one lane takes from one set in an epoch.

    Args:
        source: All rows of the set, without end.
        epoch: Number of the epoch.
        start: First draw of the lane among those of the set in this epoch.
        stop: Draw after the last one.
    """

    def __init__(self, source: _SetStream, epoch: int, start: int, stop: int) -> None:
        self._source = source
        self._first = epoch * source.draws + start  # position in the stream
        self._last = epoch * source.draws + stop
        self._open_range = lru_cache(maxsize=2)(self._open_pass)

    def _open_pass(self, number: int) -> tuple[int, WindowedRange]:
        """Returns the first position that this lane takes of a pass over the set, and its range."""
        begin = number * self._source.rows
        start = max(self._first - begin, 0)
        stop = min(self._last - begin, self._source.rows)
        return start, self._source.open_range(number, start, stop)

    def take(self, start: int, stop: int) -> Rows:
        """Returns the rows of draws `start` to `stop` of this lane."""
        position = self._first + start
        end = self._first + stop
        parts = [np.empty(0, np.int64)]
        while position < end:
            number, place = divmod(position, self._source.rows)
            count = min(end - position, self._source.rows - place)
            first, windowed = self._open_range(number)
            parts.append(windowed.take(place - first, place - first + count))
            position += count
        return np.concatenate(parts) + self._source.first_row

    def iterate_windows(self, start: int) -> Iterator[tuple[int, Rows]]:
        """Yields the first draw of every window, and its shards, from that of draw `start` on."""
        position = self._first + start
        while position < self._last:
            number, place = divmod(position, self._source.rows)
            first, windowed = self._open_range(number)
            for begin, shards in windowed.iterate_windows(place - first):
                draw = number * self._source.rows + first + begin - self._first
                yield draw, shards + self._source.first_shard
            position = (number + 1) * self._source.rows


class _LaneLayout(NamedTuple):
    """How the images of a lane become examples of batches.

    Attributes:
        rows: Number of examples: `repeats` copies of each image, but for some of the last one.
        size: Examples of the lane in a batch.
        repeats: Copies of each image; 1 for a mixture.
    """

    rows: int
    size: int
    repeats: int


class _Lane:
    """The rows of one lane in one epoch.

    Args:
        index: Number of the lane.
        epoch: Number of the epoch.
        sets: The sets that rows are taken from.
        mixture: Set of every position of the epoch; None for one set.
        draws: Images of the lane, among those of the epoch.
        layout: Number of its examples, and how they make up batches.

    Attributes:
        rows: Number of examples of the lane.
    """

    def __init__(
        self,
        index: int,
        epoch: int,
        sets: Sequence[_SetStream],
        mixture: Mixture | None,
        draws: range,
        layout: _LaneLayout,
    ) -> None:
        self.rows = layout.rows
        self._index = index
        self._start = draws.start
        self._size = layout.size
        self._repeats = layout.repeats
        self._mixture = mixture
        self._first_draws = self._count_draws(draws.start)
        last_draws = self._count_draws(draws.stop)
        self._draws = [
            _LaneDraws(source, epoch, int(self._first_draws[index]), int(last_draws[index]))
            for index, source in enumerate(sets)
        ]

    def _count_draws(self, position: int) -> Rows:
        """Returns the draws of every set before a position of the epoch, int64 `[sets]`."""
        return np.array([position]) if self._mixture is None else self._mixture.count(position)

    def take(self, start: int, stop: int) -> Rows:
        """Returns the rows of the examples at positions `start` to `stop` of the lane.

        Args:
            start: First position, where a batch begins.
            stop: Position after the last one, where a batch or the epoch ends.
        """
        if self._repeats == 1:
            return self._take_draws(start, stop)
        first = start // self._repeats
        draws = self._take_draws(first, -(-stop // self._repeats))
        return draws[self._arrange_copies(start, stop) // self._repeats - first]

    def take_copies(self, start: int, stop: int) -> Rows:
        """Returns which copy of its row each of these examples is, from 0."""
        return self._arrange_copies(start, stop) % self._repeats

    def _arrange_copies(self, start: int, stop: int) -> Rows:
        """Returns the copies in the order of their batches, in each of them the first copies first.

        Returns:
            int64 `[stop - start]`: `repeats` times the number of the draw, plus the number of the copy.
        """
        positions = np.arange(start, stop)
        return positions[np.lexsort((positions, positions % self._repeats, positions // self._size))]

    def _take_draws(self, start: int, stop: int) -> Rows:
        """Returns the rows of draws `start` to `stop` of the lane, each once."""
        if self._mixture is None:
            return self._draws[0].take(start, stop)
        sets = self._mixture.read(self._start + start, self._start + stop)
        first_draws = self._mixture.count(self._start + start) - self._first_draws
        rows = np.empty(stop - start, np.int64)
        for index, draws in enumerate(self._draws):
            is_of_set = sets == index
            first = int(first_draws[index])
            rows[is_of_set] = draws.take(first, first + int(is_of_set.sum()))
        return rows

    def list_windows(self, position: int) -> list[Iterator[WindowEvent]]:
        """Returns an iterator over the windows of every set, from those at a position of the lane on."""
        draw = position // self._repeats
        first_draws = self._count_draws(self._start + draw) - self._first_draws
        return [
            self._iterate_windows(index, position, int(first_draw))
            for index, first_draw in enumerate(first_draws)
        ]

    def _iterate_windows(self, set_index: int, position: int, first_draw: int) -> Iterator[WindowEvent]:
        for draw, shards in self._draws[set_index].iterate_windows(first_draw):
            begin = max(position, self._repeats * self._find_position(set_index, draw))
            yield begin // self._size, (self._index, set_index), shards

    def _find_position(self, set_index: int, draw: int) -> int:
        """Returns the position of a draw of a set among the draws of the lane."""
        if self._mixture is None:
            return draw
        return self._mixture.find_position(set_index, draw + int(self._first_draws[set_index])) - self._start


def identify_copies(rows: Rows, copies: Rows) -> Rows:
    """Returns numbers by which augmentation tells the copies of a row apart; the row itself for the first.

    Args:
        rows: Rows, int64 `[...]`; -1 for padding.
        copies: Number of the copy, from 0; 0 for padding.
    """
    return rows + COPY_STRIDE * copies


def steps_per_epoch(rows: int, global_batch: int) -> int:
    """Returns the number of batches that hold every row once; the last one may be padded.

    Raises:
        ConfigError: The batch is smaller than 1.
    """
    if global_batch < 1:
        raise ConfigError("a batch of at least 1", f"batch={global_batch}", "choose a larger batch")
    return -(-rows // global_batch)


def batch_per_worker(global_batch: int, workers: int) -> int:
    """Returns the number of examples per step and worker.

    Raises:
        ConfigError: The batch cannot be divided evenly; the message names the nearest ones that can.
    """
    if global_batch % workers:
        nearest = name_multiples(global_batch, workers)
        raise ConfigError(
            f"a batch that {workers} workers can share evenly", f"batch={global_batch}", f"use {nearest}"
        )
    return global_batch // workers


def check_lanes(lanes: int, global_batch: int, window: int | None) -> None:
    """Checks that lanes can share batches and windows evenly.

    Args:
        lanes: Number of lanes.
        global_batch: Examples per step over all workers.
        window: Number of shards that are shuffled together, over all lanes; None for all.

    Raises:
        ConfigError: They cannot; the message names the nearest values that can.
    """
    if lanes < 1:
        raise ConfigError("at least 1 lane", f"lanes={lanes}", "choose more lanes")
    if global_batch % lanes:
        sizes = name_multiples(global_batch, lanes)
        fix = f"use a batch of {sizes}, or {name_divisors(global_batch, lanes)} lanes"
        raise ConfigError(
            f"a batch that {lanes} lanes can share evenly", f"batch={global_batch} lanes={lanes}", fix
        )
    if window is not None and window % lanes:
        sizes = name_multiples(window, lanes)
        fix = f"use a window of {sizes}, or {name_divisors(window, lanes)} lanes"
        raise ConfigError(
            f"a window that {lanes} lanes can share evenly", f"window={window} lanes={lanes}", fix
        )


def check_lane_workers(lanes: int, workers: int) -> None:
    """Checks that every lane belongs to one worker; a single lane may be shared by all.

    Args:
        lanes: Number of lanes.
        workers: Number of workers that share every batch.

    Raises:
        ConfigError: The workers do not divide the lanes; the message names the nearest numbers that do.
    """
    if lanes > 1 and lanes % workers:
        fix = f"use {name_divisors(lanes, workers)} workers, or {name_multiples(lanes, workers)} lanes"
        raise ConfigError(
            "a number of workers that divides data.lanes", f"workers={workers} lanes={lanes}", fix
        )


def check_seed(seed: int) -> None:
    """Checks that a seed fits into one 64-bit word.

    Raises:
        ConfigError: The seed is out of range.
    """
    if not 0 <= seed < SEED_LIMIT:
        raise ConfigError("a seed from 0 to 2**64 - 1", f"seed={seed}", "choose another seed")
