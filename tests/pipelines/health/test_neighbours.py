"""The search for similar hashes, against the comparison of all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.health import neighbours
from pipelines.health.neighbours import MAX_DISTANCE, find_neighbours


def make_hashes(count: int) -> np.ndarray:
    """Random hashes; every third is a copy of an earlier one with 0 to 9 bits flipped."""
    random = np.random.default_rng(1)
    hashes = random.integers(0, 2**64, count, dtype=np.uint64)
    for index in range(3, count, 3):
        source = hashes[random.integers(0, index)]
        for bit in random.permutation(64)[: random.integers(0, 10)].tolist():
            source ^= np.uint64(1) << np.uint64(bit)
        hashes[index] = source
    return hashes


def compare_all(hashes: np.ndarray, others: np.ndarray) -> dict[tuple[int, int], int]:
    pairs = {}
    for i in range(len(hashes)):
        for j in range(i + 1, len(hashes)):
            distance = int(hashes[i] ^ others[j]).bit_count()
            if distance <= MAX_DISTANCE:
                pairs[i, j] = distance
    return pairs


@pytest.mark.parametrize("chunk", [7, neighbours.CHUNK])
def test_every_pair_up_to_the_distance_is_found_once(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    hashes = make_hashes(300)
    others = hashes ^ np.uint64(0xF0F0)
    for second in (hashes, others):
        pairs, distances, is_complete = find_neighbours(hashes, second, 10_000)
        expected = compare_all(hashes, second)
        assert dict(zip(map(tuple, pairs.tolist()), distances.tolist(), strict=True)) == expected
        assert is_complete
        assert set(expected.values()) == set(range(MAX_DISTANCE + 1)) or second is others


@pytest.mark.parametrize("single", range(64))
def test_hashes_that_differ_in_every_band(single: int) -> None:
    """One bit in the band of `single`, two in each of the others: only that one bit leads to the pair."""
    difference = 1 << single
    for band in range(neighbours.BANDS):
        if band != single // neighbours.BAND_BITS:
            difference |= 0b101 << (band * neighbours.BAND_BITS + 3)
    hashes = np.array([0x0123456789ABCDEF, 0x0123456789ABCDEF ^ difference], np.uint64)
    pairs, distances, _ = find_neighbours(hashes, hashes, 10)
    assert (pairs.tolist(), distances.tolist()) == ([[0, 1]], [7])


def test_the_number_of_pairs_is_limited() -> None:
    hashes = np.zeros(200, np.uint64)
    pairs, distances, is_complete = find_neighbours(hashes, hashes, 50)
    assert (len(pairs), is_complete) == (50, False)
    assert not distances.any()


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_compare(count: int) -> None:
    hashes = np.zeros(count, np.uint64)
    pairs, _, is_complete = find_neighbours(hashes, hashes, 50)
    assert (len(pairs), is_complete) == (0, True)
