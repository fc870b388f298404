"""What `glassbox report` prints to the terminal."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from report_samples import dim_and_bright, read_whole_page

GLASSBOX = Path(sys.executable).parent / "glassbox"


def make_deep_model() -> keras.Model:
    """Returns a model of eight convolutions, more than the calls that TensorFlow looks at for its warning."""
    images = keras.Input((8, 8, 1))
    x = images
    for number in range(8):
        x = keras.layers.Conv2D(3, 3, padding="same", activation="relu", name=f"conv{number}")(x)
    backbone = keras.Model(images, x, name="backbone")
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.GlobalAveragePooling2D()(backbone(inputs))
    return keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set, and three models of eight convolutions."""
    folder = tmp_path_factory.mktemp("output")
    dim_and_bright(folder / "shards")
    for number in range(3):
        make_deep_model().save(folder / f"{number}.keras")
    return folder


def run_report(folder: Path, models: int, out: str, *options: str) -> str:
    """Renders a report of the first models; returns what the command printed."""
    command = [
        str(GLASSBOX),
        "report",
        "--data",
        str(folder / "shards"),
        "--out",
        str(folder / out),
        *options,
    ]
    for number in range(models):
        command += ["--model", str(folder / f"{number}.keras")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_report_of_many_layers_does_not_warn_of_retracing(folder: Path) -> None:
    """Each layer has graphs of its own, which are traced once."""
    assert "retracing" not in run_report(folder, 1, "report")
    html = read_whole_page(folder / "report" / "index.html")
    # Eight convolutions, the mean over positions and the classifier, in a model within a model.
    assert re.findall(r"(\d+) layers in \d+ blocks", html) == ["10"]
    assert re.findall(r"(\d+) layers</dd>", html) == ["10"]


def test_a_comparison_of_models_does_not_warn_of_retracing(folder: Path) -> None:
    assert "retracing" not in run_report(folder, 3, "comparison", "--compare")
