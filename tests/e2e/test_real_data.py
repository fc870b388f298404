"""The published experiments on real photos and digits: minutes each, in `make test-all` only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
GLASSBOX = str(Path(sys.executable).with_name("glassbox"))


def glassbox(*words: str | Path) -> str:
    result = subprocess.run([GLASSBOX, *map(str, words)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def digits(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "shards"
    glassbox("shards", "build", f"idx:{shared / 'data' / 'mnist'}", out)
    return out


def test_a_model_trained_elsewhere_keeps_its_accuracy(shared: Path, digits: Path) -> None:
    output = glassbox("evaluate", "--model", shared / "seed_results" / "mnist_cnn.keras", "--data", digits)
    assert output.startswith("accuracy 0.9833")
    assert "10000 images" in output


@pytest.mark.parametrize(("preset", "floor"), [("mnist_mlp", 0.94), ("mnist_cnn", 0.98)])
def test_digits(digits: Path, tmp_path: Path, preset: str, floor: float) -> None:
    glassbox("train", "--preset", preset, "--data", digits, "--out", tmp_path / "run")
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["val_accuracy"] >= floor


def test_photos(shared: Path, tmp_path: Path) -> None:
    """Eight of the thirty published epochs: an accuracy of two thirds, on the way to 72 %."""
    glassbox("shards", "build", f"folder:{shared / 'data' / 'cats_and_dogs_filtered'}", tmp_path / "shards")
    options = ("--preset", "cats_dogs_small", "--data", tmp_path / "shards", "epochs=8")
    glassbox("train", *options, "--out", tmp_path / "run")
    epochs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(epoch["val_accuracy"] for epoch in epochs) >= 0.64
    assert epochs[-1]["loss"] < epochs[0]["loss"]
