"""`glassbox drain`: saves and stops the trainings of this host before its node goes away."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipelines.errors import TrainingError
from pipelines.text import print_lines
from service.commands.common import Subparsers, add_command

DRIVERS = ("train", "tune")  # commands that SIGTERM makes save and exit
POLL_SECONDS = 0.2
DEFAULT_SECONDS = 540
PROCESSES = Path("/proc")


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds `drain` to the command line."""
    summary = "stop the trainings started on this host: they save, and can be resumed (for a preStop hook)"
    parser = add_command(commands, "drain", summary, run)
    parser.add_argument(
        "--seconds",
        type=float,
        default=DEFAULT_SECONDS,
        metavar="S",
        help="how long to wait for them (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> None:
    """Stops the drivers on this host.

    Raises:
        TrainingError: A driver has not ended in time.
    """
    count = stop_drivers(options.seconds)
    print_lines(f"{count} trainings have stopped")


def stop_drivers(seconds: float, processes: Path = PROCESSES) -> int:
    """Sends SIGTERM to the drivers on this host, and waits until they have ended.

    Args:
        seconds: How long to wait for them.
        processes: Where the kernel lists processes.

    Returns:
        The number of drivers.

    Raises:
        TrainingError: A driver has not ended in time.
    """
    drivers = set(find_drivers(processes))
    for process in drivers:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while running := drivers & set(find_drivers(processes)):
        if time.monotonic() > deadline:
            raise TrainingError(
                f"trainings that stop within {seconds:g} s",
                f"running={', '.join(map(str, sorted(running)))}",
                "raise --seconds and terminationGracePeriodSeconds; the newest checkpoint is intact",
            )
        time.sleep(POLL_SECONDS)
    return len(drivers)


def find_drivers(processes: Path = PROCESSES) -> Iterator[int]:
    """Yields the IDs of the processes of this user that run `glassbox train` or `glassbox tune`.

    Args:
        processes: Where the kernel lists processes.
    """
    for folder in processes.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            is_own = folder.stat().st_uid == os.geteuid()
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if is_own and is_driver(words):
            yield int(folder.name)


def is_driver(words: list[str]) -> bool:
    """Tells whether a command is a Python interpreter that runs a driver; its shell is none.

    Args:
        words: The command with its arguments.
    """
    if not Path(words[0]).name.startswith("python") or len(words) < 2:
        return False
    script = Path(words[1])
    is_command = script.name == "glassbox" and words[2:3] in [[name] for name in DRIVERS]
    return is_command or script.parts[-2:] == ("service", "train.py")
