"""The main job as a user runs it: shards, training, evaluation and report, each by its own command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.e2e
GLASSBOX = str(Path(sys.executable).with_name("glassbox"))
SOURCE = "synthetic:evidence,train=70,validation=30,size=64"


def glassbox(*words: str | Path) -> str:
    """Runs a command, which must succeed; returns what it printed."""
    result = subprocess.run([GLASSBOX, *map(str, words)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a shard set and a finished run."""
    folder = tmp_path_factory.mktemp("job")
    shards = folder / "shards"
    built = glassbox("shards", "build", SOURCE, shards, "--shard-rows", "32")
    assert "100 images stored, 0 rejected" in built
    settings = ("--preset", "demo", "epochs=2", "global_batch=16")
    trained = glassbox("train", *settings, "--data", shards, "--out", folder / "run")
    epochs = [line.split("  ")[0] for line in trained.splitlines() if line.startswith("epoch")]
    assert epochs == ["epoch 1/2", "epoch 2/2"]
    return folder


def read_metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_shard_set(job: Path) -> None:
    manifest = json.loads((job / "shards" / "manifest.json").read_text())
    splits = manifest["splits"]
    assert [(split["rows"], split["shard_count"]) for split in splits.values()] == [(70, 3), (30, 1)]
    sidecars = [split[name]["file"] for split in splits.values() for name in ("table", "index")]
    files = [
        split["file_pattern"].format(number=number)
        for split in splits.values()
        for number in range(split["shard_count"])
    ]
    names = {path.name for path in (job / "shards").iterdir()}
    assert names == {"manifest.json", "rejected.jsonl", *sidecars, *files}
    output = glassbox("shards", "info", job / "shards")
    assert all(name in output for name in manifest["classes"])


def test_run_directory(job: Path) -> None:
    run = job / "run"
    lines = read_metrics(run)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert all(0 <= line[key] <= 1 for line in lines for key in ("accuracy", "val_accuracy", "input_wait"))
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["epoch-0001", "epoch-0002"]


def test_tensorboard_events_hold_the_same_metrics(job: Path) -> None:
    from tensorflow.compat.v1.train import summary_iterator

    lines = read_metrics(job / "run")
    for split, prefix in (("train", ""), ("validation", "val_")):
        (file,) = (job / "run" / "events" / split).iterdir()
        values = {
            (value.tag, event.step): value.simple_value
            for event in summary_iterator(str(file))
            for value in event.summary.value
        }
        for line in lines:
            for name in ("loss", "accuracy"):
                assert values[name, line["epoch"]] == pytest.approx(line[prefix + name], rel=1e-6)


def test_saved_model_is_the_best_epoch(job: Path) -> None:
    """`evaluate`, and the saved model loaded by Keras alone, score what the run's metrics say."""
    best = max(read_metrics(job / "run"), key=lambda line: line["val_accuracy"])
    output = glassbox("evaluate", "--model", job / "run", "--data", job / "shards")
    assert f"accuracy {best['val_accuracy']:.4f}" in output
    assert f"loss {best['val_loss']:.4f}" in output

    import keras

    from pipelines.input.batches import read_rows
    from pipelines.spec import DataSpec

    model = keras.models.load_model(job / "run" / "model.keras")
    batch = read_rows(job / "shards", "validation", DataSpec(image_size=model.input_shape[1:3]), range(30))
    predicted = np.asarray(model(batch["image"].astype(np.float32)))[:, 0] > 0.5
    assert abs((predicted == batch["label"]).mean() - best["val_accuracy"]) < 1e-6


def test_report(job: Path) -> None:
    output = glassbox("report", job / "run")
    page = job / "run" / "report" / "index.html"
    assert str(page) in output
    assert json.loads((page.parent / "manifest.json").read_text())["pictures"]
    html = page.read_text()
    assert "<script src" not in html
    assert "http://" not in html.replace("http://www.w3.org", "")
