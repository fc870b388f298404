"""Learning rates per update, against values computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.errors import ConfigError
from service.config import RunConfig
from service.recipe import ScheduleSpec
from service.training.schedule import find_stage, learning_rates, list_stages, run_rates, updates_per_epoch

ROOT_HALF = 0.7071067811865476  # cos of 45 degrees


def compute_rates(updates: int = 8, epochs: int = 1, base: float = 2.0, **settings: Any) -> np.ndarray:
    return learning_rates(ScheduleSpec(**settings), base, updates // epochs, epochs)


def test_the_rate_is_constant_after_a_linear_warmup() -> None:
    rates = compute_rates(6, warmup_steps=4)
    assert rates.dtype == np.float32
    assert rates.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert compute_rates(6, warmup_steps=4, warmup_from=0.5).tolist() == [1.0, 1.25, 1.5, 1.75, 2.0, 2.0]
    assert compute_rates(6, epochs=3, warmup_epochs=2.0).tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert compute_rates(6, epochs=3, warmup_epochs=0.5).tolist() == [0.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert compute_rates(3).tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("scale", "batch", "accumulate", "rate", "first"),
    [
        ("none", 1024, 1, 0.1, 0.1),
        ("linear", 1024, 1, 0.4, 0.1),
        ("linear", 256, 4, 0.4, 0.1),
        ("linear", 64, 1, 0.025, 0.025),  # a smaller batch needs no warmup to a lower rate
        ("sqrt", 1024, 1, 0.2, 0.1),
    ],
)
def test_the_batch_scales_the_rate_and_the_warmup_begins_without(
    scale: str, batch: int, accumulate: int, rate: float, first: float
) -> None:
    config = RunConfig(
        preset="test",
        shards="shards",
        model="linear",
        optimizer={"learning_rate": 0.1, "scale": scale},
        schedule={"warmup_epochs": 2.0, "warmup_from": "unscaled"},
        global_batch=batch,
        accumulate=accumulate,
        epochs=4,
    )
    rates = run_rates(config, 10)
    np.testing.assert_allclose(rates[[0, 10, 20, 39]], [first, (first + rate) / 2, rate, rate], rtol=1e-6)


def test_the_cosine_runs_over_what_the_warmup_leaves() -> None:
    # (1 + cos 0, 45, 90, 135 degrees) / 2 of the base rate
    np.testing.assert_allclose(
        compute_rates(4, name="cosine"), [2.0, 1 + ROOT_HALF, 1.0, 1 - ROOT_HALF], rtol=1e-6
    )
    # between the base rate and a tenth of it
    np.testing.assert_allclose(compute_rates(4, name="cosine", end=0.1)[[0, 2]], [2.0, 1.1], rtol=1e-6)
    # the cosine runs over what the warmup leaves: 4 of 6 updates
    expected = [0.0, 1.0, 2.0, 1 + ROOT_HALF, 1.0, 1 - ROOT_HALF]
    np.testing.assert_allclose(compute_rates(6, name="cosine", warmup_steps=2), expected, rtol=1e-6)


def test_steps_fall_at_epochs_of_the_stage() -> None:
    rates = compute_rates(8, epochs=4, name="step", boundaries=(1, 3), factor=0.5)
    assert rates.tolist() == [2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5]
    with_warmup = compute_rates(
        8, epochs=4, name="step", boundaries=(1, 9), factor=0.5, warmup_steps=1, warmup_from=0.25
    )
    assert with_warmup.tolist() == [0.5, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_one_cycle_rises_to_its_peak_and_falls() -> None:
    # up from 2 / 4 to 2 over 4 updates, down to a tenth of 2 over the other 4
    up = [0.5, 0.5 + 1.5 * (1 - ROOT_HALF) / 2, 1.25, 0.5 + 1.5 * (1 + ROOT_HALF) / 2]
    down = [2.0, 0.2 + 1.8 * (1 + ROOT_HALF) / 2, 1.1, 0.2 + 1.8 * (1 - ROOT_HALF) / 2]
    np.testing.assert_allclose(
        compute_rates(8, name="one_cycle", pct_start=0.5, div=4, end=0.1), up + down, rtol=1e-6
    )
    assert int(np.argmax(compute_rates(100, name="one_cycle"))) == 30
    assert int(np.argmax(compute_rates(100, name="one_cycle", pct_start=0.9))) == 90
    with np.errstate(all="raise"):  # one update has no room for two halves
        assert compute_rates(1, name="one_cycle", pct_start=0.9, div=4).tolist() == [0.5]
        assert compute_rates(1, name="one_cycle", pct_start=0.1, div=4).tolist() == [2.0]


@pytest.mark.parametrize(("setting", "value"), [("warmup_steps", 6), ("warmup_epochs", 3.0)])
def test_a_warmup_as_long_as_the_stage_is_an_error(setting: str, value: float) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"schedule\.{setting}={value}\. Fix: warm up for fewer than 6 updates \(3 epochs\)",
    ):
        compute_rates(6, epochs=3, **{setting: value})


def test_left_over_batches_make_an_update_of_their_own() -> None:
    assert [updates_per_epoch(7, k) for k in (1, 2, 3, 7, 8)] == [7, 4, 3, 1, 1]


def create_config(**settings: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "preset": "p",
            "shards": "s",
            "model": "m",
            "optimizer": {"learning_rate": 2.0},
            "freeze": "*",
            **settings,
        }
    )


def test_stages_follow_each_other_each_with_its_own_rates() -> None:
    specs = [
        {"epochs": 2},
        {
            "epochs": 1,
            "learning_rate": 0.5,
            "schedule": {"name": "constant"},
            "freeze": "a",
            "train": ["b", "c"],
        },
    ]
    config = create_config(schedule={"name": "cosine"}, epochs=3, stages=specs)
    np.testing.assert_allclose(
        run_rates(config, 2), [2.0, 1 + ROOT_HALF, 1.0, 1 - ROOT_HALF, 0.5, 0.5], rtol=1e-6
    )
    stages = list_stages(config)
    first, second = stages
    assert (first.first, first.epochs, first.learning_rate, first.freeze, first.train) == (
        1,
        2,
        2.0,
        ("*",),
        (),
    )
    assert (second.first, second.epochs, second.learning_rate, second.freeze, second.train) == (
        3,
        1,
        0.5,
        ("*", "a"),
        ("b", "c"),
    )
    assert [find_stage(stages, epoch) for epoch in (1, 2, 3)] == [0, 0, 1]


def test_a_stage_without_a_schedule_starts_that_of_the_run_again() -> None:
    config = create_config(
        schedule={"warmup_steps": 1}, epochs=2, stages=[{"epochs": 1}, {"epochs": 1, "learning_rate": 4.0}]
    )
    assert run_rates(config, 3).tolist() == [0.0, 2.0, 2.0, 0.0, 4.0, 4.0]


def test_a_run_without_stages_is_a_single_one() -> None:
    (only,) = list_stages(create_config(epochs=3))
    assert (only.first, only.epochs, only.learning_rate, only.schedule, only.freeze) == (
        1,
        3,
        2.0,
        ScheduleSpec(),
        ("*",),
    )
    assert run_rates(create_config(epochs=3), 2).tolist() == [2.0] * 6
