"""Ctrl-C, answered where it cannot get lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Answers an interrupt that arrives within the block at its end, and a second one at once.

    Python drops an interrupt that arrives within a callback of its import system or while a Cython module loads: about
    two of a hundred while Ray is imported. Where something else than Python itself answers interrupts, or in another
    thread, nothing is changed.

    Raises:
        KeyboardInterrupt: One arrived, whatever else the block raised.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    held: list[int] = []

    def hold(number: int, frame: Any) -> None:
        held.append(number)
        if len(held) > 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if held:
            raise KeyboardInterrupt
