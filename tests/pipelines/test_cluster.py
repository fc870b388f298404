"""Connecting to Ray or starting it: one sentence where that fails, a traceback where it is a bug."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import ray

from pipelines.cluster import ray_session, run_tasks
from pipelines.errors import ConfigError

TIMEOUT = (
    "The current node timed out during startup. This could happen because some raylet failed to startup."
)
ROOT = Path(__file__).resolve().parents[2]
SHORT_TASKS = """
import time
from contextlib import closing
from pipelines.cluster import ray_session, run_tasks

def work():
    time.sleep(0.005)

with ray_session():
    for cycle in range(600):
        with closing(run_tasks(work, [()] * 8, str)) as tasks:
            next(tasks)
print("alive")
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Creates a folder for the folders of Rays; the paths of sockets must be short."""
    with tempfile.TemporaryDirectory(prefix="gb", dir="/tmp") as name:
        yield Path(name)


def test_a_ray_that_does_not_start_in_time_is_an_error_in_one_sentence(
    tmp_path: Path, short_folder: Path
) -> None:
    """Ray gets no time at all."""
    env = {
        **os.environ,
        "HOME": str(tmp_path),
        "RAY_TMPDIR": str(short_folder),
        "RAY_gcs_server_port_wait_time_s": "0",
        "PYTHONPATH": str(ROOT),
    }
    env.pop("RAY_ADDRESS", None)
    code = "from service.cli import main; raise SystemExit(main())"
    command = ["shards", "build", "synthetic:evidence,train=4,validation=2,size=64", str(tmp_path / "out")]
    result = subprocess.run(
        [sys.executable, "-c", code, *command], env=env, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 2, result.stderr
    (message,) = (line for line in result.stderr.splitlines() if line.startswith("glassbox:"))
    assert message.startswith(
        "glassbox: Expected Ray to start on this machine within 30 seconds. Received: ray: Timed out waiting"
    )
    assert "less busy" in message
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
    assert list(short_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        (
            None,
            Exception(TIMEOUT),
            "to start on this machine .* ray: The current node timed out during startup",
        ),
        (None, ConnectionError(""), "to start on this machine .* ray: ConnectionError"),
        (
            "auto",
            ConnectionError("Could not find any Ray.\nPlease"),
            r"RAY_ADDRESS=auto: Could not find any Ray\. Fix",
        ),
        ("auto", ray.exceptions.AuthenticationError("no token"), "accepts the connection.*no token"),
    ],
)
def test_errors_of_ray_become_one_sentence(
    monkeypatch: pytest.MonkeyPatch, address: str | None, error: Exception, message: str
) -> None:
    fail_to_start(monkeypatch, address, error)
    with pytest.raises(ConfigError, match=message), ray_session():
        pass


@pytest.mark.parametrize("error", [TypeError("init() got an unexpected keyword argument"), KeyError("x")])
def test_other_errors_are_not_changed(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    fail_to_start(monkeypatch, None, error)
    with pytest.raises(type(error)), ray_session():
        pass


def test_an_interrupt_that_ray_drops_while_it_starts_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(**options: Any) -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    shutdowns: list[bool] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: shutdowns.append(True))
    with pytest.raises(KeyboardInterrupt), ray_session():
        pytest.fail("the block was entered")
    assert shutdowns == [True]


def fail_to_start(monkeypatch: pytest.MonkeyPatch, address: str | None, error: Exception) -> None:
    """Makes Ray fail to start with an error."""

    def fail(**options: object) -> None:
        raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # keeps the Ray of other tests


@pytest.mark.e2e
def test_tasks_that_keep_running_are_cancelled(tmp_path: Path, ray_cluster: None) -> None:
    """The eight long tasks would take minutes, and each leaves a file if it ends by itself."""

    def work(rounds: int) -> None:
        for _ in range(rounds):  # an interrupt does not end a sleep, but is served after it
            time.sleep(0.01)
        if rounds:
            (tmp_path / secrets.token_hex(4)).touch()

    with closing(run_tasks(work, [(0,), *[(5000,)] * 8], str)) as tasks:
        next(tasks)
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.e2e
def test_tasks_that_end_while_they_are_cancelled_do_not_end_this_process(short_folder: Path) -> None:
    """Without the grace period, Ray 2.60 aborted after 14 to 300 cycles."""
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "PYTHONPATH": str(ROOT),
        "RAY_TMPDIR": str(short_folder),
    }
    result = subprocess.run(
        [sys.executable, "-c", SHORT_TASKS], env=env, capture_output=True, text=True, timeout=600
    )
    assert (result.returncode, result.stdout) == (0, "alive\n"), result.stderr[-2000:]
    assert list(short_folder.iterdir()) == []


@pytest.mark.e2e
def test_a_ray_that_was_imported_before_listens_on_loopback_as_well(ray_cluster: None) -> None:
    (node,) = ray.nodes()
    assert node["NodeManagerAddress"] == "127.0.0.1"
    assert os.environ["RAY_AUTH_MODE"] == "token"
