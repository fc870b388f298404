"""Measures candidates in processes of their own, with interleaved rounds so that noise hits all alike."""

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
CLOSE_SECONDS = 60
FAILURES = {"missing": "not installed", "failed": "failed"}  # keys of a reply, and how reasons begin

LogProgress = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """One row of a benchmark's table.

    Attributes:
        name: Title of the row.
        function: `module:function` of a generator as `worker` describes it.
        settings: Arguments of the function; JSON.
        process: Candidates with the same value share a process; by default each has its own.
        python: Path of the interpreter that runs it.
        checkout: Working tree that the project's code comes from; None for this one.
        cores: Number of cores it may keep busy; None for all.
        epochs: Passes over the images per round; reported seconds are those of one pass.
        is_plotted: Whether its rate is comparable to the others' in a chart.
    """

    name: str
    function: str
    settings: dict[str, Any] = field(default_factory=dict)
    process: str | None = None
    python: str = sys.executable
    checkout: str | None = None
    cores: int | None = None
    epochs: int = 1
    is_plotted: bool = True


@dataclass
class Measurement:
    """Measured rounds of a candidate.

    Attributes:
        seconds: Wall-clock seconds of every round.
        cpu: CPU seconds of every round, over all cores and child processes.
        others: Fraction of the machine that other processes kept busy, per round.
        reason: Why there are no rounds: `not installed: ...` or `failed: ...`.
        versions: Versions of the libraries that the candidate imported.
    """

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    reason: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def record_failure(self, reply: dict[str, Any]) -> None:
        """Sets the reason if a reply of the worker reports a failure."""
        for key, word in FAILURES.items():
            if key in reply:
                self.reason = f"{word}: {reply[key]}"


class _WorkerProcess:
    """A process that runs `worker.py`, and the requests to it."""

    def __init__(self, python: str, checkout: str | None, log: Path) -> None:
        environment = os.environ | {
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        if checkout:
            environment["PYTHONPATH"] = checkout
        with log.open("ab") as errors:
            self._child = subprocess.Popen(
                [python, str(HERE / "worker.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )

    def send(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends a request and waits for the reply."""
        assert self._child.stdin
        assert self._child.stdout
        try:
            print(json.dumps(request), file=self._child.stdin, flush=True)
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"failed": f"the process ended with status {self._child.wait()}"}
        return json.loads(line)

    def measure_cpu_seconds(self) -> float:
        """Returns the CPU seconds of the process and its descendants, including exited ones."""
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
        """Closes the input, at which the process exits; kills it if it does not."""
        assert self._child.stdin
        self._child.stdin.close()
        try:
            self._child.wait(timeout=CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


def run_candidates(
    candidates: Sequence[Candidate], rounds: int, log: Path, log_progress: LogProgress
) -> dict[str, Measurement]:
    """Prepares all candidates, warms each up with an unmeasured round, and measures the rounds.

    Every other round runs in reverse order, so that a drift of the machine favors no candidate.

    Args:
        candidates: Candidates in the order of the table.
        rounds: Number of measured rounds.
        log: File for the output of the processes.
        log_progress: Function that receives a line for every step.

    Returns:
        The measurement of every candidate by name.
    """
    measurements = {candidate.name: Measurement() for candidate in candidates}
    processes: dict[str, _WorkerProcess] = {}
    try:
        for candidate in candidates:
            log_progress(f"preparing {candidate.name}")
            process = _get_process(candidate, processes, log)
            _prepare(candidate, process, measurements[candidate.name])
        for number in range(rounds):
            log_progress(f"round {number + 1} of {rounds}")
            for candidate in candidates if number % 2 == 0 else reversed(candidates):
                if measurements[candidate.name].reason is None:
                    process = _get_process(candidate, processes, log)
                    _measure_round(candidate, process, measurements[candidate.name])
    finally:
        for process in processes.values():
            process.close()
    return measurements


def _get_process(candidate: Candidate, processes: dict[str, _WorkerProcess], log: Path) -> _WorkerProcess:
    key = candidate.process or candidate.name
    if key not in processes:
        processes[key] = _WorkerProcess(candidate.python, candidate.checkout, log)
    return processes[key]


def _prepare(candidate: Candidate, process: _WorkerProcess, measurement: Measurement) -> None:
    request = {"name": candidate.name, "function": candidate.function, "settings": candidate.settings}
    reply = process.send(request)
    if "versions" in reply:
        measurement.versions = reply["versions"]
        reply = process.send({"name": candidate.name})  # the warm-up round
    measurement.record_failure(reply)


def _measure_round(candidate: Candidate, process: _WorkerProcess, measurement: Measurement) -> None:
    cpu_before = process.measure_cpu_seconds()
    machine_before = psutil.cpu_times()
    reply = process.send({"name": candidate.name})
    measurement.record_failure(reply)
    if measurement.reason is not None:
        return
    cpu = process.measure_cpu_seconds() - cpu_before
    spent = [now - before for now, before in zip(psutil.cpu_times(), machine_before, strict=True)]
    busy = sum(spent[:3])  # user, nice, system
    total = sum(spent[:8])  # including idle and I/O wait, without the guests' time counted twice
    measurement.seconds.append(reply["seconds"] / candidate.epochs)
    measurement.cpu.append(cpu / candidate.epochs)
    measurement.others.append(max(0.0, busy - cpu) / max(total, 1e-9))
