"""Ctrl-C: answered at the end of what must not be interrupted, and never lost there."""

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


LOST_IN_AN_IMPORT = """
import signal, sys
from pipelines.cluster import ray_session

signal.signal(signal.SIGINT, signal.default_int_handler)

class Dropping:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "ray":
            Dropping()

sys.meta_path.insert(0, Finder())
try:
    with ray_session():
        print("entered")
except KeyboardInterrupt:
    print("interrupted")
"""


def interrupt(times: int, reached: list[int]) -> None:
    with hold_interrupts():
        for number in range(times):
            signal.raise_signal(signal.SIGINT)
            reached.append(number)


@pytest.mark.parametrize("times", [1, 2])
def test_the_first_is_answered_at_the_end_and_the_second_at_once(times: int) -> None:
    reached: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        interrupt(times, reached)
    assert reached == [0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_one_nothing_happens() -> None:
    with hold_interrupts():
        pass
    with pytest.raises(ValueError, match="of the block"), hold_interrupts():
        raise ValueError("of the block")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_is_answered_whatever_else_happens() -> None:
    with pytest.raises(KeyboardInterrupt), hold_interrupts():
        raise ValueError(signal.raise_signal(signal.SIGINT))


def test_the_handler_of_somebody_else_answers_as_ever() -> None:
    seen: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    with hold_interrupts():
        signal.raise_signal(signal.SIGINT)
        assert seen == [signal.SIGINT]


def test_another_thread_may_enter() -> None:
    entered = []

    def enter() -> None:
        with hold_interrupts():
            entered.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [signal.default_int_handler]


def test_one_while_ray_is_imported_is_not_lost() -> None:
    """Python ignores what is raised in a destructor, as it does in the callbacks of its import system."""
    words = [sys.executable, "-c", LOST_IN_AN_IMPORT]
    found = subprocess.run(
        words, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert found.stdout.split() == ["interrupted"], found.stderr
