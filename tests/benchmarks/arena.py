"""Contestants side by side: every one in a process of its own, their rounds interleaved, so that noise hits all alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

Say = Callable[[str], None]


@dataclass(frozen=True)
class Contestant:
    """One row of the table.

    Attributes:
        name: Its title.
        function: `module:function`, a generator as `worker` describes it.
        settings: The function's arguments; JSON.
        process: Contestants of the same word share a process; by default each has its own.
        python: The interpreter that runs it.
        cores: How many cores it may keep busy; None for all.
        epochs: How often it goes through the images in a round; seconds count for one.
        drawn: Whether its figure belongs beside the others' in a chart.
    """

    name: str
    function: str
    settings: dict[str, Any] = field(default_factory=dict)
    process: str | None = None
    python: str = sys.executable
    cores: int | None = None
    epochs: int = 1
    drawn: bool = True


@dataclass
class Outcome:
    """What came of a contestant.

    Attributes:
        seconds: Of every round.
        cpu: Processor seconds of every round, over all cores and child processes.
        others: Share of the machine that all else kept busy, per round.
        reason: Why there are no rounds: `not installed: ...` or `failed: ...`.
        versions: Of the libraries it imported.
    """

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    reason: str | None = None
    versions: dict[str, str] = field(default_factory=dict)


class _Process:
    """A `worker` and the conversation with it."""

    def __init__(self, python: str, log: Path) -> None:
        environment = os.environ | {
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        with log.open("ab") as errors:
            self._child = subprocess.Popen(
                [python, str(HERE / "worker.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends a request and waits for the answer."""
        assert self._child.stdin
        assert self._child.stdout
        try:
            print(json.dumps(request), file=self._child.stdin, flush=True)
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else {"failed": f"the process ended with status {self._child.wait()}"}

    def cpu_seconds(self) -> float:
        """Processor seconds that it, its children and what they left behind have used so far."""
        total = 0.0
        root = psutil.Process(self._child.pid)
        for process in (root, *root.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system + times.children_user + times.children_system
        return total

    def close(self) -> None:
        """Ends it by ending its input."""
        assert self._child.stdin
        self._child.stdin.close()
        try:
            self._child.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


def compete(contestants: Sequence[Contestant], rounds: int, log: Path, say: Say) -> dict[str, Outcome]:
    """Prepares all contestants, warms each up with a round that does not count, and runs the rounds.

    Every other round goes through the contestants backwards, so that a drift of the machine favours nobody.

    Args:
        contestants: Who takes part.
        rounds: How many rounds count.
        log: File for what the processes print.
        say: Takes a line about the progress.

    Returns:
        What came of each, by name.
    """
    outcomes = {contestant.name: Outcome() for contestant in contestants}
    processes: dict[str, _Process] = {}
    try:
        for contestant in contestants:
            say(f"preparing {contestant.name}")
            process = _process(contestant, processes, log)
            request = {
                "name": contestant.name,
                "function": contestant.function,
                "settings": contestant.settings,
            }
            answer = process.ask(request)
            outcomes[contestant.name].versions = answer.get("versions", {})
            _note(
                answer if "versions" not in answer else process.ask({"name": contestant.name}),
                outcomes[contestant.name],
            )
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for contestant in contestants if number % 2 == 0 else reversed(contestants):
                if outcomes[contestant.name].reason is None:
                    _round(contestant, _process(contestant, processes, log), outcomes[contestant.name])
    finally:
        for process in processes.values():
            process.close()
    return outcomes


def _process(contestant: Contestant, processes: dict[str, _Process], log: Path) -> _Process:
    key = contestant.process or contestant.name
    if key not in processes:
        processes[key] = _Process(contestant.python, log)
    return processes[key]


def _round(contestant: Contestant, process: _Process, outcome: Outcome) -> None:
    cpu, machine = process.cpu_seconds(), psutil.cpu_times()
    answer = process.ask({"name": contestant.name})
    _note(answer, outcome)
    if outcome.reason is None:
        cpu, spent = (
            process.cpu_seconds() - cpu,
            [now - then for now, then in zip(psutil.cpu_times(), machine, strict=True)],
        )
        busy = sum(spent[:3])  # user, nice, system
        outcome.seconds.append(answer["seconds"] / contestant.epochs)
        outcome.cpu.append(cpu / contestant.epochs)
        outcome.others.append(max(0.0, busy - cpu) / max(sum(spent[:8]), 1e-9))


def _note(answer: dict[str, Any], outcome: Outcome) -> None:
    for key, word in (("missing", "not installed"), ("failed", "failed")):
        if key in answer:
            outcome.reason = f"{word}: {answer[key]}"
