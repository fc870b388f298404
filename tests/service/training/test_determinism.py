"""`deterministic: true` changes no bit on CPUs, where every run gives the same bits anyway."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from training_samples import ROOT, config_for, create_run, noise_shards, read_checkpoint

from service.config import load_config

SCRIPT = Path(__file__).with_name("determinism_script.py")


def test_a_deterministic_run_on_cpus_gives_the_same_weights(tmp_path: Path) -> None:
    """With a convolution, batch statistics, dropout and augmentation, compiled by XLA or not."""
    shards = noise_shards(tmp_path / "shards")
    runs = [
        create_run(
            tmp_path / f"{model}-{xla}-{deterministic}",
            config_for(shards, model=model, xla=xla, epochs=2, deterministic=deterministic),
        )
        for deterministic in (False, True)  # last, because it changes the whole process
        for model, xla in (("tiny_pooled", "on"), ("tiny_forgetful", "off"))
    ]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, str(SCRIPT), *(str(run.path) for run in runs)]
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    half = len(runs) // 2
    for plain, deterministic in zip(runs[:half], runs[half:], strict=True):
        arrays = read_checkpoint(plain, "epoch-0002")
        others = read_checkpoint(deterministic, "epoch-0002")
        assert len(arrays) == len(others) > 2
        for array, other in zip(arrays, others, strict=True):
            np.testing.assert_array_equal(array, other)


def test_determinism_is_off_by_default(tmp_path: Path) -> None:
    assert not load_config("demo", tmp_path).deterministic
    assert load_config("demo", tmp_path, ["deterministic=true"]).deterministic
