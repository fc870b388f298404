"""Finds pairs of hashes that differ in few bits, without comparing every hash with every other one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BANDS = 4  # of 16 bits each
BAND_BITS = 16
MAX_DISTANCE = 7  # bits; up to here the search is complete, see `find_neighbours`
CHUNK = 4_000_000  # comparisons at a time, which bounds the memory
Pairs = NDArray[np.int64]  # [n, 2]


def find_neighbours(
    hashes: NDArray[np.uint64], others: NDArray[np.uint64], max_pairs: int
) -> tuple[Pairs, NDArray[np.uint8], bool]:
    """Finds all pairs `i < j` for which `hashes[i]` and `others[j]` differ in at most `MAX_DISTANCE` bits.

    Multi-index hashing (Norouzi et al., 2012): of two hashes that differ in at most 7 bits, one of the four
    bands of 16 bits differs in at most one bit. So each band is looked up as it is and with each of its bits
    flipped, 68 look-ups per hash in all. For n hashes that are spread evenly this takes about
    `n * 68 * n / 65,536` comparisons instead of `n * n / 2`: 480 times fewer.

    Args:
        hashes: uint64 `[n]`, one of every image.
        others: uint64 `[n]`: the same hashes, or those of the mirror images.
        max_pairs: Largest number of pairs to return.

    Returns:
        int64 `[m, 2]` in ascending order, their distances uint8 `[m]`, and whether these are all pairs: the
        search stops once it has found `max_pairs`.
    """
    found = np.zeros((0, 2), np.int64)
    chunks: list[Pairs] = []
    count = 0
    is_complete = True
    for pairs in _iterate_candidates(hashes, others):
        is_near = np.bitwise_count(hashes[pairs[:, 0]] ^ others[pairs[:, 1]]) <= MAX_DISTANCE
        chunks.append(pairs[is_near])
        count += int(is_near.sum())
        if count > 2 * max_pairs:  # several bands find the same pair
            found = _merge(found, chunks)
            chunks = []
            count = len(found)
            if count > max_pairs:
                is_complete = False
                break
    found = _merge(found, chunks)
    is_complete = is_complete and len(found) <= max_pairs
    found = found[:max_pairs]
    return found, np.bitwise_count(hashes[found[:, 0]] ^ others[found[:, 1]]), is_complete


def _iterate_candidates(hashes: NDArray[np.uint64], others: NDArray[np.uint64]) -> Iterator[Pairs]:
    """Yields the pairs `i < j` that share a band, or all but one bit of it."""
    flips = [0] + [1 << bit for bit in range(BAND_BITS)]
    for band in range(BANDS):
        shift = np.uint64(BAND_BITS * band)
        keys = (hashes >> shift).astype(np.uint16)
        other_keys = (others >> shift).astype(np.uint16)
        order = np.argsort(other_keys, kind="stable")
        counts = np.bincount(other_keys, minlength=1 << BAND_BITS)
        starts = np.concatenate([[0], np.cumsum(counts)])  # of each key in `order`
        for flip in flips:
            targets = keys ^ np.uint16(flip)
            yield from _expand(starts[targets], counts[targets], order)


def _expand(
    starts: NDArray[np.int64], counts: NDArray[np.int64], order: NDArray[np.int64]
) -> Iterator[Pairs]:
    """Yields the pairs of each row `i` with `order[starts[i] : starts[i] + counts[i]]`, those of `i < j`."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        done = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, done + CHUNK, side="right")), first + 1)
        sizes = counts[first:last]
        rows = np.repeat(np.arange(first, last), sizes)
        # 0, 1, 2, ... within the candidates of each row
        offsets = np.arange(len(rows)) - np.repeat(ends[first:last] - sizes - done, sizes)
        candidates = order[np.repeat(starts[first:last], sizes) + offsets]
        is_ordered = rows < candidates
        yield np.stack([rows[is_ordered], candidates[is_ordered]], axis=1)
        first = last


def _merge(found: Pairs, chunks: list[Pairs]) -> Pairs:
    """Joins pairs, each once, in ascending order."""
    return np.unique(np.concatenate([found, *chunks]), axis=0)
