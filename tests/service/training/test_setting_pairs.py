"""Every pair of settings that touch the training loop, against a specification of the loop written here.

A covering array has few rows, and every two values of two settings in one of them. Each row trains a tiny
model; the long test also stops and resumes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_samples import config_for, fit_run, noise_shards, read_checkpoint, read_logged_rows

from service.config import RunConfig
from service.runs import Run
from service.training.telemetry import ROWS_LOG

ROWS = 27
BATCH = 8
STEPS = 4  # of an epoch
RATE = 0.02
FIRST_RATE = 0.01  # of the first of two stages
MEASURED = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")
Row = dict[str, Any]

VALUES: dict[str, Sequence[Any]] = {
    "early_stopping": (
        None,
        {"metric": "loss", "patience": 1, "min_delta": 10.0},
        {"metric": "val_accuracy", "patience": 2},
        {"metric": "val_loss", "patience": 2, "min_delta": 10.0},
    ),
    "evaluate_every": (1, 2, 3),
    "accumulate": (1, 2, 3),
    "steps_per_call": (1, 3, "auto"),
    "schedule": (
        {},
        {"name": "cosine", "warmup_steps": 1},
        {"name": "step", "boundaries": (1,), "factor": 0.5},
    ),
    "epochs": (4, 5),
    "has_stages": (False, True),
    "ema": (None, 0.9),
    "keep_checkpoints": (1, 2),
    "checkpoint_minutes": (None, 1e-9),
    "precise_batch_norm": (None, 16),
    "augment": (None, {"flip": True}),
    "optimizer": ({"name": "sgd", "momentum": 0.9}, {"name": "adam", "clip_norm": 1.0}),
    "class_weights": (None, "balanced"),
    "freeze": ((), ("*hidden",)),
    "held_out": (10, 0),
    "checks": (1, 5),  # of a request to stop, before there is one
}


def is_possible(row: Mapping[str, Any]) -> bool:
    """Tells whether the metric of early stopping is measured."""
    stopping = row.get("early_stopping")
    needs_validation = stopping is not None and stopping["metric"].startswith("val_")
    return not (needs_validation and row.get("held_out") == 0)


def list_pairs(row: Mapping[str, int]) -> set[tuple[str, int, str, int]]:
    """Returns the pairs of settings, each with the index of its value, that a row covers."""
    return {(one, row[one], two, row[two]) for one, two in combinations(row, 2)}


def cover_pairs(
    values: Mapping[str, Sequence[Any]], is_allowed: Callable[[Mapping[str, Any]], bool]
) -> list[Row]:
    """Returns rows in which every allowed pair of values occurs, by a greedy search without chance."""

    def resolve(indices: Mapping[str, int]) -> Row:
        return {name: values[name][index] for name, index in indices.items()}

    open_pairs = []
    for one, two in combinations(values, 2):
        for first, second in product(range(len(values[one])), range(len(values[two]))):
            if is_allowed(resolve({one: first, two: second})):
                open_pairs.append((one, first, two, second))
    rows = []
    while open_pairs:
        one, first, two, second = open_pairs[0]
        row = {one: first, two: second}
        for name in values:
            if name in row:
                continue
            options = [
                index for index in range(len(values[name])) if is_allowed(resolve(row | {name: index}))
            ]
            counts = [
                len(list_pairs(order(row | {name: index}, values)) & set(open_pairs)) for index in options
            ]
            row[name] = options[counts.index(max(counts))]
        covered = list_pairs(order(row, values))
        open_pairs = [pair for pair in open_pairs if pair not in covered]
        rows.append(resolve(order(row, values)))
    return rows


def order(row: Mapping[str, int], values: Mapping[str, Sequence[Any]]) -> dict[str, int]:
    """Returns a row with its settings in the order of the table, in which pairs are listed."""
    return {name: row[name] for name in values if name in row}


ROWS_TO_TRAIN = cover_pairs(VALUES, is_possible)


def test_the_rows_cover_every_pair_of_values() -> None:
    for one, two in combinations(VALUES, 2):
        for first, second in product(VALUES[one], VALUES[two]):
            if is_possible({one: first, two: second}):
                assert any(row[one] == first and row[two] == second for row in ROWS_TO_TRAIN)
    assert len(ROWS_TO_TRAIN) < 20


@pytest.fixture(scope="module")
def shard_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A shard set with a validation split and one without, by the number of validation images."""
    folder = tmp_path_factory.mktemp("pairs")
    return {count: noise_shards(folder / str(count), rows=ROWS, held_out=count) for count in (10, 0)}


def build_config(row: Row, shards: Path) -> RunConfig:
    names = (
        "early_stopping",
        "evaluate_every",
        "accumulate",
        "steps_per_call",
        "schedule",
        "epochs",
        "ema",
        "keep_checkpoints",
        "checkpoint_minutes",
        "precise_batch_norm",
        "augment",
        "class_weights",
        "freeze",
    )
    settings = {name: row[name] for name in names}
    settings["optimizer"] = {"learning_rate": RATE, **row["optimizer"]}
    if row["has_stages"]:
        settings["stages"] = [{"epochs": 1, "learning_rate": FIRST_RATE}, {"epochs": row["epochs"] - 1}]
    return config_for(shards, model="tiny_normalized", global_batch=BATCH, xla="off", **settings)


def count_updates(row: Row) -> int:
    """Returns the number of updates in an epoch."""
    return -(-STEPS // row["accumulate"])


def expect_rate(row: Row, epoch: int) -> float:
    """Returns the learning rate of the last update of an epoch."""
    base = RATE
    epochs = row["epochs"]
    if row["has_stages"]:
        base = FIRST_RATE if epoch == 1 else RATE
        epochs = 1 if epoch == 1 else epochs - 1
        epoch = max(epoch - 1, 1)
    updates = count_updates(row)
    name = row["schedule"].get("name", "constant")
    if name == "step":
        return base * 0.5 ** (epoch > 1)
    if name == "constant":
        return base
    update = epoch * updates - 1
    return base * (1 + math.cos(math.pi * (update - 1) / (epochs * updates - 1))) / 2 if update else 0.0


def find_stop(row: Row, history: Sequence[Mapping[str, float]]) -> int:
    """Returns the epoch after which training ends, from the metrics of all epochs that were trained."""
    spec = row["early_stopping"]
    first = 2 if row["has_stages"] else 1
    if spec is None:
        return int(row["epochs"])
    least = spec.get("min_delta", 0.0)
    best_value = None
    best_epoch = first - 1
    for epoch in range(first, len(history) + 1):
        value = history[epoch - 1].get(spec["metric"])
        if value is None:
            continue
        loss = value if spec["metric"].endswith("loss") else -value
        if best_value is None or loss < best_value - least:
            best_value = loss
            best_epoch = epoch
        elif epoch - best_epoch >= spec["patience"]:
            return epoch
    return int(row["epochs"])


def is_evaluated(row: Row, epoch: int) -> bool:
    return row["held_out"] > 0 and (epoch % row["evaluate_every"] == 0 or epoch == row["epochs"])


def find_best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """Returns the first epoch with the highest accuracy: of validation, where it is measured at all."""
    name = "val_accuracy" if any("val_accuracy" in metrics for metrics in history) else "accuracy"
    scores = [metrics.get(name, -1.0) for metrics in history]
    return scores.index(max(scores)) + 1


def check_run(run: Run, row: Row) -> None:
    """Compares a finished run with the specification."""
    history = run.metrics()
    last = len(history)
    assert last == find_stop(row, history)
    assert [metrics["epoch"] for metrics in history] == list(range(1, last + 1))
    assert ["val_loss" in metrics for metrics in history] == [
        is_evaluated(row, e) for e in range(1, last + 1)
    ]
    rates = [metrics["learning_rate"] for metrics in history]
    np.testing.assert_allclose(rates, [expect_rate(row, epoch) for epoch in range(1, last + 1)], rtol=1e-5)

    rows = read_logged_rows(run)
    assert set(rows) == set(product(range(1, last + 1), range(STEPS)))
    for epoch in range(1, last + 1):
        trained = [image for step in range(STEPS) for image in rows[epoch, step] if image >= 0]
        assert sorted(trained) == list(range(ROWS))

    name = f"epoch-{last:04d}"
    epochs_of_stage = last - 1 if row["has_stages"] else last
    iterations = int(read_checkpoint(run, name, "optimizer")[0])
    assert iterations == epochs_of_stage * count_updates(row)

    best = find_best_epoch(history)
    kept = {path.name for path in run.checkpoints.iterdir()}
    assert {name, f"epoch-{best:04d}"} <= kept
    if row["checkpoint_minutes"] is None:
        newest = {f"epoch-{epoch:04d}" for epoch in range(last - row["keep_checkpoints"] + 1, last + 1)}
        assert kept == newest | {f"epoch-{best:04d}"}
    else:
        assert len(kept) in (row["keep_checkpoints"], row["keep_checkpoints"] + 1)

    reason = run.status().get("reason")
    if last < row["epochs"]:
        assert reason.startswith(f"stopped early after epoch {last} of {row['epochs']}: ")
        assert reason in run.status()["notices"]
    else:
        assert reason is None


def check_equal(run: Run, reference: Run, row: Row) -> None:
    """Compares a run that was stopped and resumed with one that was not."""
    pairs = list(zip(run.metrics(), reference.metrics(), strict=True))
    for metrics, expected in pairs:
        for name in MEASURED:
            assert (name in metrics) == (name in expected)
            assert metrics.get(name, 0.0) == pytest.approx(expected.get(name, 0.0), rel=1e-9)
    name = f"epoch-{len(pairs):04d}"
    arrays = zip(read_checkpoint(run, name), read_checkpoint(reference, name), strict=True)
    for array, expected_array in arrays:
        np.testing.assert_array_equal(array, expected_array)


@pytest.mark.parametrize("row", ROWS_TO_TRAIN, ids=map(str, range(len(ROWS_TO_TRAIN))))
def test_a_run_with_these_settings_follows_the_specification(
    row: Row, shard_sets: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ROWS_LOG, "1")
    check_run(fit_run(tmp_path / "run", build_config(row, shard_sets[row["held_out"]])), row)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS_TO_TRAIN, ids=map(str, range(len(ROWS_TO_TRAIN))))
def test_a_run_with_these_settings_can_be_stopped_and_resumed(
    row: Row, shard_sets: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ROWS_LOG, "1")
    config = build_config(row, shard_sets[row["held_out"]])
    straight = fit_run(tmp_path / "straight", config)
    fit_run(tmp_path / "stopped", config, checks=row["checks"])
    resumed = fit_run(tmp_path / "stopped", config)
    check_run(resumed, row)
    check_equal(resumed, straight, row)
