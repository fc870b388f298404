"""Trainings of runs on a store, in processes of their own, on hosts that share nothing but the store."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

SCRIPT = Path(__file__).with_name("mirror_script.py")
ROOT = SCRIPT.parents[3]
LEASE_SECONDS = 3.0


@dataclass
class Host:
    """A host with a cache folder of its own.

    Attributes:
        cache: The cache folder.
        uri: Address of the run that is trained.
        processes: Processes that were started on it.
    """

    cache: Path
    uri: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(
        self, mode: str = "resume", epochs: int = 4, seconds: float = 0.05, **environment: str
    ) -> subprocess.Popen[str]:
        """Starts a training; its output is a stream of lines."""
        variables = os.environ | {
            "GLASSBOX_CACHE": str(self.cache),
            "GLASSBOX_LEASE_SECONDS": str(LEASE_SECONDS),
            "PYTHONPATH": str(ROOT),
        }
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), self.uri, mode, str(epochs), str(seconds)],
            env=variables | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def train(self, mode: str = "resume", epochs: int = 4, seconds: float = 0.02, **environment: str) -> str:
        """Trains to the end, and returns the output."""
        process = self.start(mode, epochs, seconds, **environment)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        return output


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """Reads lines of a process up to one that contains a text."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if text in line:
            return lines
    raise AssertionError(f"the process ended without {text!r}: {lines}")
