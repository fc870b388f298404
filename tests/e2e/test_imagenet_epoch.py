"""An epoch of ImageNet's recipe A2 on 10,000 generated photos in 1,000 classes.

ResNet-50 at 224 takes a second per image on two cores, so the model is `small_cnn` at 64; everything else
is the preset. Minutes, in `make test-all` only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
GLASSBOX = str(Path(sys.executable).with_name("glassbox"))
CLASSES = 1000
PER_CLASS = 10
SETTINGS = (
    "model=small_cnn",
    "model_options={}",
    "data.image_size=64",
    "data.resize=67",
    "global_batch=256",
    "epochs=1",
    "optimizer.reference_batch=256",
    "schedule.warmup_epochs=0.5",
    "precision=float32",
    "steps_per_call=1",
)
TIMED = ("seconds", "images_per_second", "input_wait")


def build_shards(folder: Path) -> Path:
    """Writes photos of 500x375 in the layout of ImageNet, a colour for each class, and builds shards."""
    generator = np.random.default_rng(0)
    photos = folder / "photos"
    (photos / "val").mkdir(parents=True)
    words = ["ImageId,PredictionString"]
    for label in range(CLASSES):
        synset = f"n{label:08d}"
        colour = generator.uniform(40, 215, 3)
        (photos / "train" / synset).mkdir(parents=True)
        for index in range(PER_CLASS):
            write_photo(photos / "train" / synset / f"{synset}_{index}.JPEG", colour, generator)
        name = f"ILSVRC2012_val_{CLASSES - label:08d}"
        write_photo(photos / "val" / f"{name}.JPEG", colour, generator)
        words.append(f"{name},{synset} 1 1 499 374")
    (photos / "LOC_val_solution.csv").write_text("\n".join(words))
    mapping = (f"n{label:08d} word {label}, other word\n" for label in range(CLASSES))
    (photos / "LOC_synset_mapping.txt").write_text("".join(mapping))
    run_command("shards", "build", f"imagenet:{photos}", folder / "shards")
    return folder / "shards"


def write_photo(path: Path, colour: np.ndarray, generator: np.random.Generator) -> None:
    coarse = generator.normal(colour, 40, (25, 34, 3))
    pixels = coarse.repeat(15, 0).repeat(15, 1)[:375, :500].clip(0, 255).astype(np.uint8)
    path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 85))


def run_command(*words: str | Path, **variables: str) -> None:
    result = subprocess.run(
        [GLASSBOX, *map(str, words)], env=os.environ | variables, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def train(shards: Path, run: Path, *options: str, **variables: str) -> list[dict[str, Any]]:
    """Trains a run to its end; returns its metrics without times."""
    words = ("train", *options, "--preset", "imagenet_resnet50_a2", "--data", shards, "--out", run, *SETTINGS)
    run_command(*words, **variables)
    return read_metrics(run)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


def read_state(run: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of the last checkpoint."""
    with np.load(run / "checkpoints" / "epoch-0001" / "state.npz") as arrays:
        return dict(arrays)


def kill_within_the_epoch(shards: Path, run: Path, **variables: str) -> None:
    """Starts a run and kills it as soon as it has a checkpoint within its epoch."""
    words = (
        "train",
        "--local",
        "--preset",
        "imagenet_resnet50_a2",
        "--data",
        shards,
        "--out",
        run,
        *SETTINGS,
    )
    process = subprocess.Popen(
        [GLASSBOX, *map(str, words), "checkpoint_minutes=0.05"],
        env=os.environ | variables,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not list((run / "checkpoints").glob("epoch-*-step-00000[1-9]*")):  # step 10 or later
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_an_epoch_of_ten_thousand_photos(tmp_path: Path) -> None:
    shards = build_shards(tmp_path)
    manifest = json.loads((shards / "manifest.json").read_text())
    assert manifest["classes"] == [f"word {label}" for label in range(CLASSES)]
    eight = {"GLASSBOX_LOGICAL_DEVICES": "8"}
    straight = train(shards, tmp_path / "eight", "--local", **eight)
    assert (tmp_path / "eight" / "model.keras").is_file()

    killed = tmp_path / "killed"
    kill_within_the_epoch(shards, killed, **eight)
    assert not (killed / "metrics.jsonl").read_text()
    run_command("train", "--local", "--resume", "--out", killed, **eight)
    assert read_metrics(killed) == straight
    resumed = read_state(killed)
    for name, expected in read_state(tmp_path / "eight").items():
        np.testing.assert_array_equal(resumed[name], expected)

    (metrics,) = train(shards, tmp_path / "two", "--workers", "2")
    for name in ("loss", "val_loss", "accuracy", "learning_rate"):
        assert metrics[name] == pytest.approx(straight[0][name], rel=1e-5)
