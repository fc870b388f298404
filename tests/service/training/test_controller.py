"""How many updates go into a call, and when it is time for a checkpoint or the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow as tf
from training_samples import watchful

from service.runs import Run
from service.training.controller import CALL_SECONDS, MAX_UPDATES, Command, LoopController
from service.training.strategy import WorkerContext


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (run := Run(tmp_path / "run")).create({})
    return run


def pace(run: Run, **settings: float) -> LoopController:
    return LoopController(run, WorkerContext(), tf.distribute.get_strategy(), **settings)


def test_calls_grow_to_a_quarter_of_a_second(run: Run) -> None:
    given = pace(run)
    assert given.orders() == Command(1)
    assert given.orders(1, 1e-5).updates == 4  # not more than four times as many
    assert given.orders(4, 4 * CALL_SECONDS / 10).updates == 10
    assert given.orders(10, 10 * 1e-4).updates == 40
    assert given.orders(40, 40 * 1e-4).updates == MAX_UPDATES
    assert given.orders(64, 64 * 1.0).updates == 1
    assert pace(run, steps_per_call=7).orders(7, 1e-6).updates == 7


def test_a_stop_is_seen_saves_and_stays(run: Run) -> None:
    with watchful():
        given = pace(run)
        assert given.orders() == Command(1)
        run.request_stop("SIGTERM")
        assert given.orders() == Command(1, save=True, stop=True)
    with watchful(1e9):
        assert given.orders().stop
        assert not pace(run).orders().stop  # not every call looks
    run.withdraw_stop()
    with watchful():
        assert not given.orders().stop


def test_checkpoints_come_by_the_clock(run: Run) -> None:
    assert pace(run, minutes=1e-9).orders() == Command(1, save=True)
    given = pace(run, minutes=60.0)
    assert given.orders() == Command(1)
    given._saved -= 3601
    assert given.orders().save
    assert given.age > 3600
    given.saved()
    assert not given.orders().save
    assert given.age < 60
