"""`glassbox drain`: which processes are stopped, and how long it waits for them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.errors import TrainingError
from service.commands.drain import find_drivers, is_driver, stop_drivers

DRIVER = """
import signal, sys
signal.signal(signal.SIGTERM, {handler})
print("ready", flush=True)
while True:
    signal.pause()
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def processes(tmp_path: Path) -> Path:
    """A folder like /proc with the processes of a test alone: others train on this machine, too."""
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "version").touch()
    return folder


@pytest.fixture
def start(tmp_path: Path, processes: Path) -> Iterator[Start]:
    """Starts a Python process whose command looks like one of glassbox."""
    started = []

    def start_one(*arguments: str, handler: str = "lambda *_: sys.exit(143)") -> subprocess.Popen[str]:
        script = tmp_path / "glassbox"
        script.write_text(DRIVER.format(handler=handler))
        process = subprocess.Popen(
            [sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        (processes / str(process.pid)).symlink_to(f"/proc/{process.pid}")
        return process

    yield start_one
    for process in started:
        process.kill()
        process.wait()


def test_drivers_are_stopped_and_others_are_not(start: Start, processes: Path) -> None:
    train = start("train", "--out", "run")
    tune = start("tune")
    report = start("report", "train")
    assert set(find_drivers(processes)) == {train.pid, tune.pid}
    assert stop_drivers(60, processes) == 2
    assert [train.wait(), tune.wait()] == [143, 143]
    assert report.poll() is None
    assert stop_drivers(60, processes) == 0


def test_a_driver_that_does_not_stop_is_an_error(start: Start, processes: Path) -> None:
    driver = start("train", handler="signal.SIG_IGN")
    with pytest.raises(TrainingError, match=f"running={driver.pid}. Fix: raise --seconds"):
        stop_drivers(0.3, processes)
    assert driver.poll() is None


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/opt/glassbox/bin/python3 /opt/glassbox/bin/glassbox train --out a", True),
        ("python service/train.py --out a", True),
        ("/bin/bash -c glassbox train --out a", False),
        ("python /opt/glassbox/bin/glassbox shards build train", False),
        ("python other/train.py", False),
        ("python", False),
        ("", False),
    ],
)
def test_only_python_processes_of_training_are_drivers(command: str, expected: bool) -> None:
    assert is_driver(command.split(" ")) is expected
