"""Ctrl-C is delayed until the end of a block, and never lost in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.interrupts import hold_interrupts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Restores the handler of SIGINT, which some of these tests replace."""
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


INTERRUPTED_IMPORT = """
import signal, sys
from pipelines.cluster import ray_session

signal.signal(signal.SIGINT, signal.default_int_handler)

class Interrupting:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "ray":
            Interrupting()

sys.meta_path.insert(0, Finder())
try:
    with ray_session():
        print("entered")
except KeyboardInterrupt:
    print("interrupted")
"""


def interrupt(times: int, reached: list[int]) -> None:
    """Interrupts this process within a block, and lists the interrupts after which the block continued."""
    with hold_interrupts():
        for number in range(times):
            signal.raise_signal(signal.SIGINT)
            reached.append(number)


@pytest.mark.parametrize("times", [1, 2])
def test_the_first_is_raised_at_the_end_and_the_second_at_once(times: int) -> None:
    reached: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        interrupt(times, reached)
    assert reached == [0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_an_interrupt_nothing_happens() -> None:
    with hold_interrupts():
        pass
    with pytest.raises(ValueError, match="of the block"), hold_interrupts():
        raise ValueError("of the block")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_takes_precedence_over_an_error() -> None:
    with pytest.raises(KeyboardInterrupt), hold_interrupts():
        raise ValueError(signal.raise_signal(signal.SIGINT))


def test_another_handler_is_kept() -> None:
    received: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    with hold_interrupts():
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]


def test_other_threads_may_enter_a_block() -> None:
    handlers = []

    def enter() -> None:
        with hold_interrupts():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


def test_an_interrupt_while_ray_is_imported_is_not_lost() -> None:
    """Python ignores exceptions in a destructor, as it does in the callbacks of its import system."""
    command = [sys.executable, "-c", INTERRUPTED_IMPORT]
    result = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600
    )
    assert result.stdout.split() == ["interrupted"], result.stderr
