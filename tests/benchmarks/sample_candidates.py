"""Candidates for the tests of the harness; worker processes import this file, so it stays light."""

from __future__ import annotations

from worker import Rounds


def write_word(word: str, path: str) -> Rounds:
    """Appends a word to a file in every round."""
    yield None
    while True:
        with open(path, "a") as file:
            file.write(word)
        yield 0.25


def fail(reason: str) -> Rounds:
    """Fails in its first round."""
    yield None
    raise ValueError(reason)
