"""The number of updates per call, and when a checkpoint or a stop is due."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow as tf

from service.runs import Run
from service.training.controller import (
    CALL_SECONDS,
    MAX_UPDATES,
    STOP_CHECK_SECONDS,
    Command,
    LoopController,
)
from service.training.strategy import WorkerContext


class FakeClock:
    """A clock that only a test advances."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.create({})
    return run


def create_controller(run: Run, clock: FakeClock, **settings: float) -> LoopController:
    return LoopController(run, WorkerContext(), tf.distribute.get_strategy(), clock=clock, **settings)


def test_calls_grow_to_a_quarter_of_a_second(run: Run, clock: FakeClock) -> None:
    controller = create_controller(run, clock)
    assert controller.next_command() == Command(1)
    assert controller.next_command(1, 1e-5).updates == 4  # at most four times as many as before
    assert controller.next_command(4, 4 * CALL_SECONDS / 10).updates == 10
    assert controller.next_command(10, 10 * 1e-4).updates == 40
    assert controller.next_command(40, 40 * 1e-4).updates == MAX_UPDATES
    assert controller.next_command(64, 64 * 1.0).updates == 1


def test_a_fixed_number_of_steps_stays(run: Run, clock: FakeClock) -> None:
    assert create_controller(run, clock, steps_per_call=7).next_command(7, 1e-6).updates == 7


def test_a_stop_request_is_noticed_at_the_next_check(run: Run, clock: FakeClock) -> None:
    controller = create_controller(run, clock)
    run.request_stop("SIGTERM")
    clock.seconds += STOP_CHECK_SECONDS / 2
    assert controller.next_command() == Command(1)
    clock.seconds += STOP_CHECK_SECONDS / 2
    assert controller.next_command() == Command(1, save=True, stop=True)
    assert controller.next_command().stop  # until the check after that
    run.withdraw_stop()
    clock.seconds += STOP_CHECK_SECONDS
    assert not controller.next_command().stop


def test_a_checkpoint_is_due_by_the_clock(run: Run, clock: FakeClock) -> None:
    controller = create_controller(run, clock, checkpoint_minutes=60.0)
    assert controller.next_command() == Command(1)
    clock.seconds += 3600
    assert controller.next_command().save
    assert controller.checkpoint_age == 3600
    controller.mark_saved()
    assert not controller.next_command().save
    assert controller.checkpoint_age == 0


def test_without_an_interval_no_checkpoint_is_due(run: Run, clock: FakeClock) -> None:
    controller = create_controller(run, clock)
    clock.seconds += 1e9
    assert not controller.next_command().save
