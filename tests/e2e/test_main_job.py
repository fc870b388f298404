"""The main job as a user runs it: shards, training, report, each by its own command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service.runs import Run

pytestmark = pytest.mark.e2e
GLASSBOX = str(Path(sys.executable).with_name("glassbox"))


def glassbox(*words: str | Path) -> str:
    """Runs the command line; returns what it printed. Fails the test where it fails."""
    result = subprocess.run([GLASSBOX, *map(str, words)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a shard set and a finished run of it."""
    folder = tmp_path_factory.mktemp("job")
    built = glassbox(
        "shards",
        "build",
        "synthetic:evidence,train=70,validation=30,size=64",
        folder / "shards",
        "--shard-rows",
        "32",
    )
    assert "100 images stored, 0 rejected" in built
    trained = glassbox(
        "train",
        "--preset",
        "demo",
        "--data",
        folder / "shards",
        "--out",
        folder / "run",
        "epochs=2",
        "global_batch=16",
    )
    assert [line.split("  ")[0] for line in trained.splitlines() if line.startswith("epoch")] == [
        "epoch 1/2",
        "epoch 2/2",
    ]
    return folder


def test_shard_set(job: Path) -> None:
    manifest = json.loads((job / "shards" / "manifest.json").read_text())
    assert [shard["rows"] for shard in manifest["splits"]["train"]["shards"]] == [32, 32, 6]
    assert sorted(path.name for path in (job / "shards").iterdir()) == sorted(
        ["manifest.json", "rejected.jsonl"]
        + [shard["file"] for split in manifest["splits"].values() for shard in split["shards"]]
    )
    told = glassbox("shards", "info", job / "shards")
    assert all(name in told for name in manifest["classes"])


def test_run_directory(job: Path) -> None:
    run = job / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert all(0 <= line[key] <= 1 for line in lines for key in ("accuracy", "val_accuracy", "input_wait"))
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["epoch-0001", "epoch-0002"]


def test_tensorboard_events_hold_the_same_figures(job: Path) -> None:
    from tensorflow.compat.v1.train import summary_iterator

    lines = [json.loads(line) for line in (job / "run" / "metrics.jsonl").read_text().splitlines()]
    for split, prefix in (("train", ""), ("validation", "val_")):
        (file,) = (job / "run" / "events" / split).iterdir()
        found = {
            (v.tag, event.step): v.simple_value
            for event in summary_iterator(str(file))
            for v in event.summary.value
        }
        for line in lines:
            for name in ("loss", "accuracy"):
                assert found[name, line["epoch"]] == pytest.approx(line[prefix + name], rel=1e-6)


def test_saved_model_is_the_best_epoch(job: Path) -> None:
    """A second opinion: the saved model, loaded by Keras alone, scores what the log says."""
    lines = [json.loads(line) for line in (job / "run" / "metrics.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: line["val_accuracy"])
    told = glassbox("evaluate", "--model", job / "run", "--data", job / "shards")
    assert f"accuracy {best['val_accuracy']:.4f}" in told
    assert f"loss {best['val_loss']:.4f}" in told

    import keras

    from pipelines.input.batches import read_rows
    from pipelines.spec import DataSpec

    model = keras.models.load_model(job / "run" / "model.keras")
    batch = read_rows(job / "shards", "validation", DataSpec(image_size=model.input_shape[1:3]), range(30))
    hits = (np.asarray(model(batch["image"].astype(np.float32)))[:, 0] > 0.5) == batch["label"]
    assert abs(hits.mean() - best["val_accuracy"]) < 1e-6


def test_report(job: Path) -> None:
    told = glassbox("report", job / "run")
    page = job / "run" / "report" / "index.html"
    assert str(page) in told
    manifest = json.loads((page.parent / "manifest.json").read_text())
    assert manifest["pictures"]
    html = page.read_text()
    assert "<script src" not in html
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_evaluate_takes_the_split_and_the_scale(job: Path) -> None:
    plain = glassbox("evaluate", "--model", job / "run", "--data", job / "shards", "--split", "train")
    assert "(70 images of split train)" in plain
    assert plain != glassbox(
        "evaluate", "--model", job / "run", "--data", job / "shards", "--split", "train", "--scale", "0.01"
    )


def test_a_run_with_a_damaged_checkpoint_is_resumed_to_the_same_end(job: Path) -> None:
    """Three epochs; the last checkpoint is damaged; the third epoch again, with the words in any order."""
    glassbox(
        "train",
        "--preset",
        "demo",
        "global_batch=16",
        "--data",
        job / "shards",
        "--out",
        job / "three",
        "epochs=3",
    )
    straight = (job / "three" / "metrics.jsonl").read_text().splitlines()
    state = job / "three" / "checkpoints" / "epoch-0003" / "state.npz"
    with np.load(state) as file:
        weights = dict(file)
    state.write_bytes(b"damaged")
    Run(job / "three").update_status(state="training")  # as a machine that lost its power leaves it
    glassbox("train", "--resume", "--out", job / "three")
    resumed = (job / "three" / "metrics.jsonl").read_text().splitlines()
    assert resumed[:2] == straight[:2]
    with np.load(state) as file:
        for name in weights:
            np.testing.assert_array_equal(file[name], weights[name])
