"""Whether a process runs: this one, one of another user, one that has ended."""

from __future__ import annotations

import os
import subprocess

from pipelines.processes import is_running


def test_this_process_and_the_first_one_run() -> None:
    assert is_running(os.getpid())
    assert is_running(1)  # which belongs to another user, unless root runs the tests


def test_a_process_that_has_ended_does_not_run() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert is_running(process.pid)
        process.kill()
    assert not is_running(process.pid)


def test_an_id_that_no_system_has_does_not_run() -> None:
    assert not is_running(2**70)
