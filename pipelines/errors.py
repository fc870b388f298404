"""Errors that a user can cause, each with its exit code."""

from __future__ import annotations

import difflib
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable

# Errors that the libraries raise on damaged archives.
ARCHIVE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    struct.error,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    NotImplementedError,
    RecursionError,
)
MAX_PART = 1000  # characters of each part of an error: a value from outside can have megabytes


class GlassboxError(Exception):
    """Base of the errors that say what was expected, what was received and how to fix it.

    None of the three parts ends with a full stop. The middle of a very long part is left out.

    Args:
        expected: What would have been valid.
        received: What was found instead, as `name=value`.
        fix: What the user can do about it, in the imperative.
    """

    exit_code = 1

    def __init__(self, expected: str, received: str, fix: str) -> None:
        parts = [shorten_middle(part, MAX_PART) for part in (expected, received, fix)]
        super().__init__(*parts)  # all three, so that it survives pickling
        self.expected, self.received, self.fix = parts

    def __str__(self) -> str:
        return f"Expected {self.expected}. Received: {self.received}. Fix: {self.fix}."


class ConfigError(GlassboxError):
    """A wrong option, preset, key or path: exit code 2."""

    exit_code = 2


class DataError(GlassboxError):
    """A source or a shard set that is broken or unsuitable: exit code 3."""

    exit_code = 3


class TrainingError(GlassboxError):
    """A run that started and could not finish: exit code 4."""

    exit_code = 4


class Interrupted(KeyboardInterrupt):
    """Work that was interrupted from outside, by Ctrl-C or a signal.

    Args:
        message: What the user can do to resume.
        exit_code: Exit code of the command.
    """

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def shorten_middle(text: str, length: int) -> str:
    """Leaves out the middle of a text that has more characters than a number of them."""
    if len(text) <= length:
        return text
    half = length // 2
    return f"{text[:half]} … {text[-half:]}"


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns the fix for an unknown name: to use one of the nearest known names, else any of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return "use " + " or ".join(near)
    if len(names) == 1:
        return f"use {names[0]}"
    return "use one of " + ", ".join(names)


def name_multiples(number: int, factor: int) -> str:
    """Names the multiples of a factor next to a number, without 0, for a fix: `32 or 40`."""
    below = number // factor * factor
    return " or ".join(str(multiple) for multiple in (below, below + factor) if multiple)


def name_divisors(number: int, near: int) -> str:
    """Names the divisors of a number next to another number, for a fix: `2 or 4`."""
    divisors = [divisor for divisor in range(1, number + 1) if number % divisor == 0]
    below = [divisor for divisor in divisors if divisor < near][-1:]
    above = [divisor for divisor in divisors if divisor > near][:1]
    return " or ".join(map(str, below + above))
