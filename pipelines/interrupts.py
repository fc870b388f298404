"""Delays Ctrl-C during imports and other steps in which Python would lose it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Delays an interrupt until the end of the block; a second one is raised at once.

    Python drops an interrupt that arrives within a callback of its import system or while a Cython module
    loads: about two of a hundred while Ray is imported. In other threads, and if a handler other than
    Python's default is installed, nothing changes.

    Raises:
        KeyboardInterrupt: An interrupt arrived, whatever else the block raised.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    interrupts: list[int] = []

    def hold(number: int, frame: Any) -> None:
        interrupts.append(number)
        if len(interrupts) > 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if interrupts:
            raise KeyboardInterrupt
