"""Damage of every file that glassbox writes: no traceback, no wrong result, and nothing else is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("ray_cluster", "_quiet")]
STEP = 47  # of the cases that are always run: few, with every damage, every command and every kind of folder


@pytest.fixture
def _quiet(capfd: pytest.CaptureFixture[str]) -> None:
    """Keeps what TensorFlow prints out of the way."""


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    from fault_matrix import Matrix, list_cases
    from tiny_models import register_tiny_models

    with register_tiny_models(), ExitStack() as resources:
        yield Matrix(tmp_path_factory.mktemp("matrix"), resources, list_cases())


def run_cases(matrix: Any, cases: Iterable[Any]) -> dict[str, str]:
    """Runs cases; returns the details of those with a wrong outcome."""
    from fault_matrix import GOOD

    wrong = {}
    for case in cases:
        outcome, details = matrix.run_case(case)
        if outcome not in GOOD:
            wrong[f"{case}: {outcome}"] = details
    return wrong


def test_a_sample_of_the_matrix(matrix: object) -> None:
    from fault_matrix import DAMAGES, FOLDERS, list_cases
    from fault_readers import COMMANDS

    cases = list_cases()[::STEP]
    assert {case.damage for case in cases} == set(DAMAGES)
    assert {case.command for case in cases} == set(COMMANDS)
    assert {case.folder for case in cases} == set(FOLDERS)
    assert run_cases(matrix, cases) == {}


@pytest.mark.slow
def test_the_whole_matrix(matrix: object) -> None:
    from fault_matrix import list_cases

    cases = list_cases()
    assert len(cases) >= 400
    assert run_cases(matrix, cases) == {}
