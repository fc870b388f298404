"""Detects that another worker does not respond, while this one waits for it within a sum over the workers."""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from tensorflow.python.eager import context
from tensorflow.python.framework import errors

LIMIT_SECONDS = 120.0  # shortest time after which a call counts as stuck
SLOWDOWN = 10.0  # a call is not stuck before it has taken so many times as long as any of its kind
GRACE_SECONDS = 30.0  # time in which a call has to end after its sums have been aborted


def abort_sums(message: str) -> None:
    """Makes all sums over the workers, also those that wait already, raise an `UnavailableError`."""
    context.context().abort_collective_ops(errors.UNAVAILABLE, message)


def choose_limit(seconds: Sequence[float], limit: float) -> float | None:
    """Chooses the seconds after which a call counts as stuck.

    Args:
        seconds: Durations of the calls of its kind so far. The first one, which includes compiling, counts
            only as long as there is no other.
        limit: Seconds that a call may take at least, however short the calls before it were.

    Returns:
        The limit in seconds; None for no limit.
    """
    if not seconds:
        return None
    return max(limit, SLOWDOWN * max(seconds[1:] or seconds))


class Watchdog:
    """Aborts the sums over the workers when a call that contains some takes far too long.

    A sum waits forever for a worker that is stuck but alive, or that has taken another path through the code.
    TensorFlow's own check and Ray's notice only a worker that does not respond at all. One thread watches all
    calls; a timeout of TensorFlow for each sum would cost two threads per sum.

    The first call of each kind has no limit, because the workers compile and fill caches at their own pace.
    If aborting does not end the call, the process prints its stack traces and exits; Ray then starts a new
    group of workers.

    Args:
        limit: Seconds after which a call counts as stuck, or more if calls of its kind take long.
        grace: Seconds after which the process exits if aborting did not end the call.
        abort: Aborts all sums, with a message.
    """

    def __init__(
        self,
        limit: float = LIMIT_SECONDS,
        grace: float = GRACE_SECONDS,
        abort: Callable[[str], None] = abort_sums,
    ) -> None:
        self._limit = limit
        self._grace = grace
        self._abort = abort
        self._seconds: dict[str, list[float]] = {}  # durations of the first and the longest later call
        self._deadline: float | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._watch_deadlines, name="watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def watch(self, kind: str) -> Iterator[None]:
        """Watches a block that waits for other workers.

        Args:
            kind: Name of the call; calls of the same name take about the same time.
        """
        began = time.monotonic()
        limit = choose_limit(self._seconds.get(kind, []), self._limit)
        self._set_deadline(None if limit is None else began + limit)
        try:
            yield
        finally:
            self._set_deadline(None)
        first, *later = [*self._seconds.get(kind, []), time.monotonic() - began]
        self._seconds[kind] = [first, max(later)] if later else [first]

    def close(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _set_deadline(self, deadline: float | None) -> None:
        with self._changed:
            self._deadline = deadline
            self._changed.notify()

    def _watch_deadlines(self) -> None:
        while (deadline := self._wait_until_late()) is not None:
            # A thread of C, because aborting may hang and keep Python's lock.
            faulthandler.dump_traceback_later(self._grace, exit=True)
            self._abort("another worker has not taken part in a sum for too long")
            with self._changed:
                self._changed.wait_for(partial(self._has_ended, deadline))
            faulthandler.cancel_dump_traceback_later()

    def _has_ended(self, deadline: float) -> bool:
        """Tells whether the call of a deadline has ended."""
        return self._deadline != deadline or self._is_closed

    def _wait_until_late(self) -> float | None:
        """Waits until a call passes its deadline, and returns the deadline; None once this is closed."""
        with self._changed:
            while not self._is_closed:
                remaining = None if self._deadline is None else self._deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    return self._deadline
                self._changed.wait(remaining)
        return None
