"""Training that is killed, stopped, starved and misled: it ends in a finished run that is the undisturbed one, or in one sentence.

The cases are in `fault_cases` and `fault_nodes`; `make fault-table` does all of them, more often, and prints what happened.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fault_cases as cases
import fault_nodes as nodes
import pytest
from fault_lab import Lab, laboratory

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with a short path, because Ray puts sockets into it."""
    with tempfile.TemporaryDirectory(prefix="gb", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture(scope="module")
def lab(folder: Path) -> Iterator[Lab]:
    """A cluster with room for two workers."""
    (folder / "two").mkdir()
    with laboratory(folder / "two", 2) as lab:
        yield lab


@pytest.fixture
def small(folder: Path) -> Iterator[Lab]:
    """A cluster with room for one worker, to which nodes can be added."""
    (folder / "one").mkdir()
    try:
        with laboratory(folder / "one", 1) as lab:
            yield lab
    finally:
        shutil.rmtree(folder / "one", ignore_errors=True)


@pytest.fixture
def alone(folder: Path) -> Iterator[Lab]:
    """No cluster: each run starts a Ray of its own."""
    (folder / "none").mkdir()
    try:
        with laboratory(folder / "none", 0) as lab:
            yield lab
    finally:
        shutil.rmtree(folder / "none", ignore_errors=True)


def test_a_killed_worker(lab: Lab) -> None:
    outcome = cases.killed_workers(lab, random.Random(1))
    assert (outcome.times, outcome.apart) == (1, 0)


def test_sigterm(lab: Lab) -> None:
    assert cases.preempted(lab).apart == 0


def test_a_damaged_row(lab: Lab) -> None:
    cases.bad_row(lab)


def test_more_workers_than_there_is_room_for(alone: Lab) -> None:
    nodes.too_many_workers(alone)


@pytest.mark.slow
def test_random_kills(lab: Lab) -> None:
    assert cases.killed_workers(lab, random.Random(2), kills=4, anywhere=0.5, name="often").apart == 0


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_silent_worker(lab: Lab, rank: int) -> None:
    assert cases.silent_worker(lab, rank).apart == 0


@pytest.mark.slow
def test_a_worker_that_never_starts(lab: Lab) -> None:
    cases.stuck_start(lab)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "damage", "apart"), [(1, False, 1e-5), (2, True, 0)])
def test_a_killed_driver(lab: Lab, workers: int, damage: bool, apart: float) -> None:
    assert cases.killed_driver(lab, workers, damage).apart <= apart


@pytest.mark.slow
def test_a_killed_driver_with_a_ray_of_its_own(alone: Lab) -> None:
    assert cases.killed_driver(alone, 2).apart == 0


@pytest.mark.slow
@pytest.mark.parametrize("case", [cases.diverged, cases.diverged_and_skipped])
def test_nan(lab: Lab, case: cases.Case) -> None:
    case(lab)


@pytest.mark.slow
def test_a_full_disk(alone: Lab) -> None:
    if subprocess.run([*nodes.UNSHARED, "true"], capture_output=True).returncode:
        pytest.skip("needs leave to mount file systems of its own")
    nodes.full_disk(alone)


@pytest.mark.slow
def test_a_busy_cluster(small: Lab) -> None:
    nodes.busy_cluster(small)


@pytest.mark.slow
def test_a_lost_node(small: Lab) -> None:
    assert nodes.lost_node(small).apart == 0


@pytest.mark.slow
def test_workers_come_and_go(small: Lab) -> None:
    assert nodes.elastic(small).apart < 1e-5
