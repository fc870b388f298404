"""Iterating in a thread: same items, same errors, a bounded number ahead, and no thread left behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from pipelines.input.prefetch import THREAD_NAME, prefetch

SECONDS = 60.0  # until a wait fails


class Counter:
    """Counts to a limit, and the numbers produced so far."""

    def __init__(self, limit: int = 10) -> None:
        self.limit = limit
        self.threads: set[str] = set()
        self.is_closed = threading.Event()
        self.produced = threading.Semaphore(0)

    def count(self) -> Iterator[int]:
        try:
            for number in range(self.limit):
                self.threads.add(threading.current_thread().name)
                self.produced.release()
                yield number
        finally:
            self.is_closed.set()

    def wait_until_produced(self, items: int) -> None:
        for _ in range(items):
            assert self.produced.acquire(timeout=SECONDS)


def list_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


@pytest.mark.parametrize("ahead", [1, 2, 20])
def test_items_keep_their_order(ahead: int) -> None:
    assert list(prefetch(Counter().count(), ahead)) == list(range(10))
    assert list(prefetch(Counter(0).count(), ahead)) == []
    assert list_threads() == []


def test_items_are_produced_in_another_thread_once_the_first_is_taken() -> None:
    counter = Counter()
    numbers = prefetch(counter.count(), 2)
    assert list_threads() == []
    assert next(numbers) == 0
    assert threading.current_thread().name not in counter.threads
    numbers.close()


@pytest.mark.parametrize("ahead", [1, 3])
def test_a_bounded_number_is_produced_ahead(ahead: int) -> None:
    counter = Counter()
    numbers = prefetch(counter.count(), ahead)
    for taken in range(1, 4):
        assert next(numbers) == taken - 1
        # The first was produced for the consumer, as each later one that it took.
        counter.wait_until_produced(1 + ahead if taken == 1 else 1)
        assert not counter.produced.acquire(timeout=0.01)
    numbers.close()


def test_an_error_comes_in_place_of_its_item_and_is_not_changed() -> None:
    failure = ValueError("row=2")

    def fail() -> Iterator[int]:
        yield from range(2)
        raise failure

    numbers = prefetch(fail(), 2)
    assert [next(numbers), next(numbers)] == [0, 1]
    with pytest.raises(ValueError, match="row=2") as caught:
        next(numbers)
    assert caught.value is failure
    assert list_threads() == []


def test_closing_ends_the_thread_and_closes_the_items() -> None:
    counter = Counter()
    numbers = prefetch(counter.count(), 2)
    next(numbers)
    assert len(list_threads()) == 1
    numbers.close()
    assert counter.is_closed.is_set()
    assert list_threads() == []


def test_deleting_ends_the_thread() -> None:
    counter = Counter()
    numbers = prefetch(counter.count(), 2)
    next(numbers)
    del numbers
    gc.collect()
    assert counter.is_closed.is_set()
    assert list_threads() == []


def test_a_thread_that_deletes_its_own_consumer_does_not_wait_for_itself() -> None:
    """The garbage collector may delete an iterator in the thread that works for it."""
    consumers: list[Iterator[int]] = []
    has_consumer = threading.Event()

    def delete_consumer() -> Iterator[int]:
        yield 0
        assert has_consumer.wait(SECONDS)
        consumers.clear()
        yield 1

    numbers = prefetch(delete_consumer(), 1)
    next(numbers)
    (thread,) = list_threads()
    consumers.append(numbers)
    del numbers
    has_consumer.set()
    thread.join(SECONDS)
    assert not thread.is_alive()
