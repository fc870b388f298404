"""Runs an iterator in a thread of its own, a bounded number of items ahead of its consumer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")

THREAD_NAME = "glassbox-input"
_END: Any = object()


def prefetch(items: Generator[Item, None, None], ahead: int) -> Iterator[Item]:
    """Iterates in a thread, so that the consumer waits only if it is faster than the iterator.

    The thread starts with the first item that is taken. It ends with the last item, with an error, and when
    the returned iterator is closed or deleted, which waits for the item in production.

    Args:
        items: Generator to iterate over. It runs, and is closed, outside of the consumer's thread.
        ahead: Largest number of items that exist, or are in production, before the consumer takes them.

    Yields:
        The items in their order. An error that `items` raises is raised in place of its item, unchanged.
    """
    executor = ThreadPoolExecutor(1, THREAD_NAME)
    pending: deque[Future[Item]] = deque()
    try:
        for _ in range(ahead):
            pending.append(executor.submit(next, items, _END))
        item = pending.popleft().result()
        while item is not _END:
            pending.append(executor.submit(next, items, _END))
            yield item
            item = pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        executor.submit(items.close)
        # The garbage collector may run this in such a thread, which cannot wait for itself.
        is_consumer = not threading.current_thread().name.startswith(THREAD_NAME)
        executor.shutdown(wait=is_consumer)
