"""A worker that does not take part in a sum is detected, by one thread."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from training_samples import (
    ROOT,
    config_for,
    create_run,
    find_free_ports,
    noise_shards,
    read_worker,
    train_in_processes,
)

from service.training.watchdog import Watchdog, choose_limit

SCRIPT = Path(__file__).parent / "collectives_script.py"
LIMIT = 0.05  # seconds
PATIENCE = 60.0  # seconds; a busy machine is slow


class Actions:
    """What a watchdog has done.

    Attributes:
        aborted: Set once the sums have been aborted.
    """

    def __init__(self) -> None:
        self.aborted = threading.Event()

    def start(self, limit: float = LIMIT, grace: float = PATIENCE) -> Watchdog:
        return Watchdog(limit, grace, lambda message: self.aborted.set())


@pytest.fixture
def actions() -> Actions:
    return Actions()


def test_the_first_call_of_a_kind_may_take_any_time(actions: Actions) -> None:
    watchdog = actions.start()
    with watchdog.watch("updates"):
        assert not actions.aborted.wait(4 * LIMIT)
    with watchdog.watch("evaluation"):
        assert not actions.aborted.wait(4 * LIMIT)
    watchdog.close()


def test_a_later_call_that_takes_too_long_is_aborted(actions: Actions) -> None:
    watchdog = actions.start()
    with watchdog.watch("updates"):
        pass
    with watchdog.watch("updates"):
        assert actions.aborted.wait(PATIENCE)
    watchdog.close()


@pytest.mark.parametrize(
    ("seconds", "limit"),
    [
        ([], None),
        ([0.0], 120.0),
        ([12.0], 120.0),
        ([30.0], 300.0),
        ([240.0, 1.0], 120.0),
        ([1.0, 9.0], 120.0),
    ],
)
def test_slow_calls_have_a_longer_limit_and_compiling_does_not_count(
    seconds: list[float], limit: float | None
) -> None:
    assert choose_limit(seconds, 120.0) == limit


def test_an_abort_that_hangs_ends_the_process() -> None:
    code = (
        "import threading; from service.training.watchdog import Watchdog; forever = threading.Event()\n"
        "watchdog = Watchdog(0.05, 0.05, lambda message: forever.wait())\n"
        "for _ in range(2):\n"
        "    with watchdog.watch('updates'):\n"
        "        forever.wait(0 if _ == 0 else 600)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=10 * PATIENCE
    )
    assert result.returncode == 1
    assert "Timeout" in result.stderr  # followed by the stack traces of all threads


def test_a_call_is_no_longer_watched_once_it_has_ended_or_raised(actions: Actions) -> None:
    watchdog = actions.start(limit=1.0)
    with watchdog.watch("updates"):
        pass
    with watchdog.watch("updates"):
        pass
    with pytest.raises(ValueError, match="bad"), watchdog.watch("updates"):
        raise ValueError("bad")
    assert not actions.aborted.wait(1.5)
    watchdog.close()


def test_closing_ends_the_thread(actions: Actions) -> None:
    before = threading.active_count()
    watchdog = actions.start()
    assert threading.active_count() == before + 1
    watchdog.close()
    assert threading.active_count() == before


def run_collectives(*arguments: str) -> dict[str, Any]:
    """Runs two processes of `collectives_script.py`; returns what worker 0 prints."""
    ports = ",".join(map(str, find_free_ports(2)))
    processes = []
    for rank in (0, 1):
        command = [sys.executable, str(SCRIPT), str(rank), ports, *arguments]
        processes.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    try:
        output = processes[0].communicate(timeout=10 * PATIENCE)[0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return dict(json.loads(output.splitlines()[-1]))


def test_a_worker_that_skips_a_sum_is_detected() -> None:
    summary = run_collectives("1")
    assert summary["seconds"] >= 1
    assert "another worker has not taken part in a sum for too long" in summary["error"]
    assert summary["hint"] == "ring"
    assert summary["timeout"] == 0
    assert summary["minimum"] == [2**40, 6]


def test_gpus_sum_by_nccl() -> None:
    assert run_collectives("1", "gpu") == {"hint": "nccl", "timeout": 0}


@pytest.mark.parametrize("updates", [800, pytest.param(5000, marks=pytest.mark.slow)])
def test_the_number_of_threads_does_not_grow_with_the_updates(tmp_path: Path, updates: int) -> None:
    shards = noise_shards(tmp_path / "shards", rows=4 * updates)
    config = config_for(shards, global_batch=4, epochs=1, augment=None, steps_per_call=20)
    run = create_run(tmp_path / "run", config)
    train_in_processes([run.path], workers=2)
    for rank in (0, 1):
        threads = read_worker(run, rank)["threads"]
        assert len(threads) == updates // 20 + 1
        # TensorFlow starts the threads of its pools during the first calls.
        assert max(threads) <= threads[5] + 10, threads
