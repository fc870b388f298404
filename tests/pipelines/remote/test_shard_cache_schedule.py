"""The schedule of a pass and the choice of victims: eviction by next use, as pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.remote.schedule import CachedFile, CacheEntry, Schedule, choose_victims


def build_entry(name: str, size: int = 1) -> CacheEntry:
    return CacheEntry(f"set/{name}", name, size, f"digest of {name}")


def build_windows(text: str, size: int = 1) -> list[list[CacheEntry]]:
    """Builds windows of files with names of one letter: `AB CD` is two windows of two files."""
    return [[build_entry(name, size) for name in window] for window in text.split()]


def read_names(entries: Sequence[CacheEntry]) -> str:
    return "".join(entry.name for entry in entries)


def request(schedule: Schedule, names: str) -> str:
    return read_names(schedule.request([f"set/{name}" for name in names]))


# Sizes and times of last use
FILES = st.lists(st.tuples(st.just(3) | st.integers(0, 9), st.integers(0, 5)), max_size=8)


@st.composite
def draw_cache(draw: st.DrawFn) -> tuple[list[CachedFile], set[str], dict[str, int]]:
    files = [CachedFile(str(index), size, at) for index, (size, at) in enumerate(draw(FILES))]
    keys = [file.key for file in files]
    subsets = st.sets(st.sampled_from(keys)) if keys else st.just(set())
    next_use = {key: draw(st.integers(0, 20)) for key in sorted(draw(subsets))}
    return files, draw(subsets), next_use


@given(draw_cache(), st.integers(0, 30), st.none() | st.integers(0, 20))
def test_victims_free_enough_and_are_needed_last(
    content: tuple[list[CachedFile], set[str], dict[str, int]], needed: int, distance: int | None
) -> None:
    files, protected, next_use = content
    victims = choose_victims(files, protected, next_use, needed, distance)

    evictable = [
        file
        for file in files
        if file.key not in protected
        and (file.key not in next_use or distance is None or next_use[file.key] > distance)
    ]
    if sum(file.bytes for file in evictable) < needed:
        assert victims is None
        return
    assert victims is not None
    freed = sum(file.bytes for file in victims)
    assert freed >= needed
    assert set(victims) <= set(evictable)
    assert all(freed - file.bytes < needed for file in victims)  # none is superfluous
    if len({file.bytes for file in files}) == 1:
        uses = [next_use.get(file.key, 99) for file in evictable if file not in victims]
        assert all(next_use.get(victim.key, 99) >= max(uses, default=0) for victim in victims)


def test_a_file_in_no_plan_goes_first_and_the_oldest_of_them_before_others() -> None:
    files = [CachedFile("planned", 1, 0), CachedFile("new", 1, 9), CachedFile("old", 1, 3)]
    victims = choose_victims(files, (), {"planned": 1}, 2, None)
    assert victims is not None
    assert [file.key for file in victims] == ["old", "new"]


def count_misses(windows: str, capacity: int) -> int:
    """Counts the fetches of a cache of files of one byte that evicts by next use."""
    schedule = Schedule(build_windows(windows), capacity)
    cached: set[str] = set()
    misses = 0
    for number, window in enumerate(windows.split()):
        for name in window:
            request(schedule, name)
            key = f"set/{name}"
            if key in cached:
                continue
            misses += 1
            next_use = schedule.find_next_uses()
            victims = choose_victims(
                [CachedFile(key, 1, 0) for key in cached], (), next_use, len(cached) + 1 - capacity, None
            )
            assert victims is not None
            cached -= {file.key for file in victims}
            cached.add(key)
        schedule.advance(number + 1)
    return misses


def count_fewest_misses(names: str, capacity: int) -> int:
    """Counts the fetches of the best of all possible caches, by trying every victim."""

    @cache
    def search(position: int, cached: frozenset[str]) -> int:
        if position == len(names):
            return 0
        name = names[position]
        if name in cached:
            return search(position + 1, cached)
        if len(cached) < capacity:
            return 1 + search(position + 1, cached | {name})
        return 1 + min(search(position + 1, cached - {victim} | {name}) for victim in cached)

    return search(0, frozenset())


@settings(max_examples=50)
@given(st.lists(st.permutations("ABCD"), min_size=1, max_size=3), st.integers(2, 3))
def test_as_few_files_are_fetched_as_possible(epochs: list[list[str]], capacity: int) -> None:
    names = "".join(itertools.chain.from_iterable(epochs))
    assert count_misses(" ".join(names), capacity) == count_fewest_misses(names, capacity)


def test_a_window_is_in_use_from_its_first_request_until_it_is_over() -> None:
    schedule = Schedule(build_windows("AB CD EF"), 100)
    assert schedule.list_current() == []
    assert request(schedule, "B") == "AB"
    assert read_names(schedule.list_current()) == "AB"
    assert request(schedule, "A") == ""
    assert request(schedule, "BC") == "CD"  # a batch with rows of two windows
    assert read_names(schedule.list_current()) == "ABCD"
    assert schedule.advance(1)
    assert not schedule.advance(1)
    assert read_names(schedule.list_current()) == "CD"
    assert schedule.advance(3)
    assert schedule.list_current() == []


def test_a_pass_may_skip_windows() -> None:
    schedule = Schedule(build_windows("A B C D"), 1)
    assert schedule.advance(2)
    assert schedule.last == 1
    assert request(schedule, "D") == "CD"
    assert [read_names(window.entries) for window, _ in schedule.iterate_upcoming()] == ["C", "D"]


def test_two_windows_per_epoch_are_not_confused_with_those_of_the_next_epoch() -> None:
    schedule = Schedule(build_windows("AB CD CA BD"), 100)
    request(schedule, "A")
    request(schedule, "C")
    schedule.advance(1)
    assert read_names(schedule.list_current()) == "CD"
    schedule.advance(2)
    assert request(schedule, "A") == "CA"
    assert schedule.last == 2


def test_the_distance_of_a_file_is_what_is_needed_before_it() -> None:
    schedule = Schedule(build_windows("AB CD EA", 10), 1000)
    request(schedule, "A")
    assert schedule.find_next_uses() == name_keys(A=0, B=0, C=20, D=20, E=40)
    schedule.advance(1)
    assert schedule.find_next_uses() == name_keys(C=0, D=0, E=20, A=20)


def test_what_two_windows_in_a_row_share_is_needed_once() -> None:
    schedule = Schedule(build_windows("AB BC CD A", 10), 1000)
    assert schedule.find_next_uses() == name_keys(A=0, B=0, C=20, D=30)
    request(schedule, "A")
    assert schedule.find_horizon() == 20
    schedule.advance(1)
    assert schedule.find_next_uses() == name_keys(B=0, C=0, D=10, A=20)


def name_keys(**distances: int) -> dict[str, int]:
    return {f"set/{name}": distance for name, distance in distances.items()}


@pytest.mark.parametrize("budget", [4, 10**9])
def test_an_endless_order_is_read_only_as_far_as_it_matters(budget: int) -> None:
    read = []

    def iterate_windows() -> Iterator[list[CacheEntry]]:
        for epoch in itertools.count():
            for window in build_windows("AB CD EF"):
                read.append(epoch)
                yield window

    schedule = Schedule(iterate_windows(), budget)
    assert schedule.find_need() == 4
    assert len(read) <= 6
    request(schedule, "A")
    schedule.advance(1)
    assert len(read) <= 8


def test_two_windows_with_the_same_files_need_their_space_once() -> None:
    assert Schedule(build_windows("ABC CAB", 7), 1).find_need() == 21
    assert Schedule(build_windows("AB BC", 7), 1).find_need() == 21
    assert Schedule(build_windows("AB", 7), 1).find_need() == 14
    assert Schedule([], 1).find_need() == 0
