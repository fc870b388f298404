"""How many of the available devices share a batch, for any batch and for every preset."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from training_samples import noise_shards

from pipelines.augment.draw import check_batch
from pipelines.spec import AugmentSpec
from service.config import load_config, preset_names
from service.devices import LOGICAL_DEVICES
from service.runs import Run
from service.training.group import WorkerSpec, plan_groups
from service.training.replicas import choose_replicas, describe_unused_devices

ROOT = Path(__file__).resolve().parents[3]
MIXED = AugmentSpec.model_validate({"mixup": 0.2})


def test_the_largest_number_of_devices_that_divides_the_batch_is_chosen() -> None:
    for devices in range(1, 17):
        for global_batch in range(1, 130):
            divisors = [count for count in range(1, devices + 1) if global_batch % count == 0]
            assert choose_replicas(devices, global_batch) == max(divisors)


def test_mixing_needs_an_even_batch_on_every_replica() -> None:
    assert [choose_replicas(8, batch, MIXED) for batch in (8, 12, 16, 20, 24, 32)] == [4, 6, 8, 5, 6, 8]
    assert choose_replicas(8, 7, MIXED) == 1  # `check_batch` refuses it
    assert choose_replicas(8, 7, AugmentSpec.model_validate({"flip": True})) == 7


def test_unused_devices_are_described_with_the_batches_that_would_use_them() -> None:
    assert describe_unused_devices("GPUs", 8, 8, 24) is None
    assert describe_unused_devices("GPUs", 4, 8, 4) == (
        "training on 4 of 8 GPUs, because more cannot share a batch of 4 evenly; "
        "global_batch=8 would use all 8"
    )
    assert describe_unused_devices("GPUs", 6, 8, 24, MIXED) == (
        "training on 6 of 8 GPUs, because more cannot share a batch of 24 evenly in pairs to mix; "
        "global_batch=16 or 32 would use all 8"
    )


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_has_a_plan_on_any_number_of_gpus(preset: str, gpus: int) -> None:
    config = load_config(preset, "shards")
    nodes = [{"CPU": 16.0, "GPU": float(gpus)}]
    smallest, groups = plan_groups(WorkerSpec(), nodes, config.global_batch, config.augment)
    assert groups == [smallest]
    assert 1 <= smallest.gpus <= gpus
    assert config.global_batch % smallest.gpus == 0
    if config.augment:
        check_batch(config.augment, config.global_batch // smallest.gpus)
    if gpus > 1:
        assert smallest.gpus > 1


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("preset", "replicas"), [("mnist_mlp", 6), pytest.param("demo", 8, marks=pytest.mark.slow)]
)
def test_presets_start_on_eight_devices(tmp_path: Path, preset: str, replicas: int) -> None:
    shards = noise_shards(tmp_path / "shards", rows=48)
    words = ("train", "--local", "--preset", preset, "--data", shards, "--out", tmp_path / "run", "epochs=1")
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from service.cli import main; sys.exit(main())",
            *map(str, words),
        ],
        env=os.environ | {LOGICAL_DEVICES: "8", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    status = Run(tmp_path / "run").status()
    assert (status["state"], status["world_size"]) == ("finished", replicas)
    notice = f"training on {replicas} of 8 logical CPU devices"
    assert (notice in result.stdout) == (replicas < 8)
