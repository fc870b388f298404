"""What `glassbox plan` measures on this machine predicts the epochs of real trainings, in CPU time.

Wall-clock time depends on what else the machine does between the prediction and the training; CPU time hardly
does. Each round plans and trains, one directly after the other.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import pytest
from shard_samples import make_record, write_shards
from training_samples import create_run

from service.config import build_config, read_preset
from service.planning.request import PlanRequest, plan_training
from service.training.loop import Loop
from service.training.strategy import WorkerContext

pytestmark = [pytest.mark.heavy, pytest.mark.slow]  # trains some epochs of three presets

ROUNDS = 3
TOLERANCE = 0.25
MEASURED_SECONDS = 1.0  # of each rate; three seconds in use
CHANNELS = {(28, 28): 1, (150, 150): 3}


def write_noise(folder: Path, rows: int, size: tuple[int, int]) -> Path:
    """Writes a shard set of noise in two classes, stored as PNG in the size that the preset takes."""
    generator = np.random.default_rng(0)
    shape = (*size, CHANNELS[size])
    records = [
        make_record(generator.integers(0, 256, shape).astype(np.uint8).squeeze(), row % 2, f"{row}.png")
        for row in range(rows)
    ]
    return write_shards(folder, ("a", "b"), {"train": records}, shard_rows=rows)


def predict_cpu_seconds(preset: str, shards: Path) -> float:
    """Returns the CPU time that a plan of one epoch predicts."""
    plan = plan_training(PlanRequest(preset=preset, data=str(shards), overrides=("epochs=1",)))
    return plan.duration.epoch_cpu_seconds


def measure_cpu_seconds(loop: Loop) -> float:
    """Trains one epoch; returns the CPU time of its updates, without its evaluation and checkpoint."""
    began = time.process_time()
    metrics = loop.train_epoch()
    seconds = time.process_time() - began
    loop.finish_epoch(metrics, None)
    return seconds


@pytest.mark.parametrize(
    ("preset", "rows", "size"),
    [
        ("mnist_mlp", 6000, (28, 28)),
        ("mnist_cnn", 4000, (28, 28)),
        ("cats_dogs_small", 100, (150, 150)),
    ],
)
def test_cpu_time_of_an_epoch_is_predicted(
    preset: str, rows: int, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.planning.measure.SECONDS", MEASURED_SECONDS)
    shards = write_noise(tmp_path / "shards", rows, size)
    name, settings = read_preset(preset)
    config = build_config(name, {**settings, "epochs": ROUNDS + 1}, str(shards), preset)
    loop = Loop(config, create_run(tmp_path / "run", config), WorkerContext())
    try:
        measure_cpu_seconds(loop)  # traces and compiles, which a plan leaves out
        ratios = [predict_cpu_seconds(preset, shards) / measure_cpu_seconds(loop) for _ in range(ROUNDS)]
    finally:
        loop.close()
    assert statistics.median(ratios) == pytest.approx(1.0, abs=TOLERANCE), ratios
