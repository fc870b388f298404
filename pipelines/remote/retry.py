"""Retries of a request to a store: exponential backoff with jitter, until a time limit."""

from __future__ import annotations

import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from pipelines.errors import ConfigError
from pipelines.remote.errors import is_transient, translate_error
from pipelines.remote.uri import Uri

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

TIMEOUT_VARIABLE = "GLASSBOX_STORE_TIMEOUT"
DEFAULT_TIMEOUT_S = 180.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0


_limit: ContextVar[float] = ContextVar("limit", default=math.inf)


@contextmanager
def limit_retries(seconds: float) -> Iterator[None]:
    """Limits the time of retries in a block, for callers that try again by themselves.

    Args:
        seconds: Limit for every operation of this thread in the block.
    """
    token = _limit.set(seconds)
    try:
        yield
    finally:
        _limit.reset(token)


def read_timeout() -> float:
    """Returns for how many seconds a request is retried: `GLASSBOX_STORE_TIMEOUT`, or 180.

    Raises:
        ConfigError: The variable is not a positive number.
    """
    text = os.environ.get(TIMEOUT_VARIABLE)
    if text is None:
        return DEFAULT_TIMEOUT_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise ConfigError(
            "a positive number of seconds",
            f"{TIMEOUT_VARIABLE}={text}",
            f"correct or unset {TIMEOUT_VARIABLE}",
        )
    return seconds


class Retries:
    """Time limit of one operation, with the pauses between its attempts.

    Args:
        uri: Object or prefix of the operation, for messages.
    """

    def __init__(self, uri: Uri) -> None:
        self.uri = uri
        self.count = 0
        self._deadline = time.monotonic() + min(read_timeout(), _limit.get())
        self._random = secrets.SystemRandom()

    def restart(self) -> None:
        """Starts the time limit again, after progress."""
        self.count = 0
        self._deadline = time.monotonic() + min(read_timeout(), _limit.get())

    def pause_after(self, error: Exception) -> None:
        """Waits before the next attempt.

        Raises:
            StoreError: The error in one sentence, if it is permanent or the time is over.
        """
        pause = min(FIRST_PAUSE_S * 2**self.count, LONGEST_PAUSE_S) * self._random.uniform(0.5, 1.0)
        if not is_transient(error) or time.monotonic() + pause > self._deadline:
            raise translate_error(error, self.uri) from None
        self.count += 1
        logger.warning("%s: the store does not respond; attempt %d follows", self.uri, self.count + 1)
        time.sleep(pause)


def retry(operation: Callable[[], Result], uri: Uri, errors: tuple[type[Exception], ...]) -> Result:
    """Returns the operation's result; repeats it while the store fails in a way that may pass.

    Args:
        operation: Request that may be sent any number of times with the same effect.
        uri: Object or prefix of the request.
        errors: Exceptions of the client.

    Raises:
        StoreError: The last failure, in one sentence.
    """
    retries = Retries(uri)
    while True:
        try:
            return operation()
        except errors as error:
            retries.pause_after(error)
