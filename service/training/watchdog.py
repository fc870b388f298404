"""Detects that another worker does not respond, while this one waits for it within a sum over the workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tensorflow.python.eager import context
from tensorflow.python.framework import errors

LIMIT_SECONDS = 120.0  # shortest time after which a call counts as stuck
SLOWDOWN = 10.0  # a call is not stuck before it has taken so many times as long as any of its kind
GRACE_SECONDS = 30.0  # time in which a call has to end after its sums have been aborted


def abort_sums(message: str) -> None:
    """Makes all sums over the workers, also those that wait already, raise an `UnavailableError`."""
    context.context().abort_collective_ops(errors.UNAVAILABLE, message)


def kill_process() -> None:
    """Ends this process at once; Ray then starts a new group of workers."""
    os.kill(os.getpid(), signal.SIGKILL)


def choose_limit(longest: float | None, limit: float) -> float | None:
    """Chooses the seconds after which a call counts as stuck.

    Args:
        longest: Seconds that the longest call of its kind has taken; None if it is the first.
        limit: Shortest limit.

    Returns:
        The limit in seconds; None for no limit.
    """
    return None if longest is None else max(limit, SLOWDOWN * longest)


class Watchdog:
    """Aborts the sums over the workers when a call that contains some takes far too long.

    A sum waits forever for a worker that is stuck but alive, or that has taken another path through the code.
    TensorFlow's own check and Ray's notice only a worker that does not respond at all. One thread watches all
    calls; a timeout of TensorFlow for each sum would cost two threads per sum.

    The first call of each kind has no limit, because the workers compile and fill caches at their own pace.

    Args:
        limit: Seconds after which a call counts as stuck, or more if calls of its kind take long.
        grace: Seconds after which the process is killed if aborting did not end the call.
        abort: Aborts all sums, with a message.
        kill: Ends the process.
    """

    def __init__(
        self,
        limit: float = LIMIT_SECONDS,
        grace: float = GRACE_SECONDS,
        abort: Callable[[str], None] = abort_sums,
        kill: Callable[[], None] = kill_process,
    ) -> None:
        self._limit = limit
        self._grace = grace
        self._abort = abort
        self._kill = kill
        self._longest: dict[str, float] = {}  # seconds, by the kind of call
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
        longest = self._longest.get(kind)
        limit = choose_limit(longest, self._limit)
        self._set_deadline(None if limit is None else began + limit)
        try:
            yield
        finally:
            self._set_deadline(None)
        self._longest[kind] = max(longest or 0.0, time.monotonic() - began)

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
        with self._changed:
            while not self._is_closed:
                if self._deadline is None:
                    self._changed.wait()
                    continue
                remaining = self._deadline - time.monotonic()
                if remaining > 0:
                    self._changed.wait(remaining)
                    continue
                self._end_call(self._deadline)

    def _end_call(self, deadline: float) -> None:
        """Aborts the call of a deadline that has passed, and kills the process if that does not end it."""
        self._abort("another worker has not taken part in a sum for too long")
        has_ended = self._changed.wait_for(lambda: self._deadline != deadline or self._is_closed, self._grace)
        if not has_ended:
            self._kill()
            self._deadline = None
