"""Trainings that are killed, stopped and starved end like an undisturbed one, or in one sentence.

The cases are in `fault_cases` and `fault_nodes`; `make fault-table` runs all of them and prints
a table.
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
from fault_lab import Lab, open_lab

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
    with open_lab(folder / "two", 2) as lab:
        yield lab


@pytest.fixture
def small_lab(folder: Path) -> Iterator[Lab]:
    """A cluster with room for one worker, to which nodes can be added."""
    (folder / "one").mkdir()
    try:
        with open_lab(folder / "one", 1) as lab:
            yield lab
    finally:
        shutil.rmtree(folder / "one", ignore_errors=True)


@pytest.fixture
def lab_without_cluster(folder: Path) -> Iterator[Lab]:
    """No cluster: each run starts its own Ray."""
    (folder / "none").mkdir()
    try:
        with open_lab(folder / "none", 0) as lab:
            yield lab
    finally:
        shutil.rmtree(folder / "none", ignore_errors=True)


def test_a_killed_worker(lab: Lab) -> None:
    outcome = cases.kill_workers(lab, random.Random(1))
    assert (outcome.count, outcome.difference) == (1, 0)


def test_sigterm(lab: Lab) -> None:
    assert cases.terminate_driver(lab).difference == 0


def test_more_workers_than_there_is_room_for(lab_without_cluster: Lab) -> None:
    nodes.request_too_many_workers(lab_without_cluster)


@pytest.mark.slow
def test_a_damaged_row(lab: Lab) -> None:
    cases.damage_row(lab)


@pytest.mark.slow
def test_random_kills(lab: Lab) -> None:
    assert cases.kill_workers(lab, random.Random(2), kills=4, at_any_time=0.5, name="often").difference == 0


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_silent_worker(lab: Lab, rank: int) -> None:
    assert cases.stop_worker(lab, rank).difference == 0


@pytest.mark.slow
def test_a_worker_that_never_starts(lab: Lab) -> None:
    cases.stop_starting_worker(lab)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "damage", "tolerance"), [(1, False, 1e-5), (2, True, 0)])
def test_a_killed_driver(lab: Lab, workers: int, damage: bool, tolerance: float) -> None:
    assert cases.kill_driver(lab, workers, damage).difference <= tolerance


@pytest.mark.slow
def test_a_killed_driver_with_its_own_ray(lab_without_cluster: Lab) -> None:
    assert cases.kill_driver(lab_without_cluster, 2).difference == 0


@pytest.mark.slow
@pytest.mark.parametrize("case", [cases.diverge, cases.diverge_and_skip])
def test_nan(lab: Lab, case: cases.Case) -> None:
    case(lab)


@pytest.mark.slow
def test_a_full_disk(lab_without_cluster: Lab) -> None:
    if subprocess.run([*nodes.UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("needs permission to mount file systems")
    nodes.fill_disk(lab_without_cluster)


@pytest.mark.slow
def test_a_busy_cluster(small_lab: Lab) -> None:
    nodes.occupy_cluster(small_lab)


@pytest.mark.slow
def test_a_lost_node(small_lab: Lab) -> None:
    assert nodes.lose_node(small_lab).difference == 0


@pytest.mark.slow
def test_a_node_that_joins_and_is_lost(small_lab: Lab) -> None:
    assert nodes.add_and_lose_node(small_lab).difference < 1e-5
