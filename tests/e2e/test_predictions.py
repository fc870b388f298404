"""`glassbox evaluate` and `predict` on a cluster: to the bit as alone, even when workers are killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from fault_lab import GLASSBOX, ROOT, describe_ray, find_descendants, read_title
from report_samples import brightness_model
from shard_samples import make_record, write_shards

from pipelines.records import Record
from service.cli import main

pytestmark = pytest.mark.e2e
PHOTOS = "synthetic:evidence,train=2600,validation=0,size=32"  # three blocks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "brightness.keras"
    brightness_model().save(path)
    return path


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of two splits with two blocks and a bit each; one row cannot be decoded."""
    draw = np.random.default_rng(2)

    def draw_record(row: int) -> Record:
        return make_record(draw.integers(0, 256, (8, 8)).astype(np.uint8), row % 2, f"{row}")

    train = [draw_record(row) for row in range(2100)]
    train[1500] = Record(b"junk", 0, "bad", (8, 8, 1))
    validation = [draw_record(row) for row in range(2100)]
    splits = {"train": train, "validation": validation}
    return write_shards(tmp_path_factory.mktemp("noise") / "set", ("a", "b"), splits)


def glassbox(*words: str | Path) -> None:
    """Runs a command in this process, which must succeed."""
    assert main([str(word) for word in words]) == 0


@pytest.mark.parametrize(("suffix", "workers"), [("csv", 3), ("parquet", 2)])
def test_predictions_do_not_depend_on_the_number_of_workers(
    suffix: str,
    workers: int,
    model: Path,
    noise: Path,
    tmp_path: Path,
    ray_cluster: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--model", model, "--data", noise, "--scale", "0.7")
    alone = tmp_path / f"alone.{suffix}"
    together = tmp_path / f"together.{suffix}"
    summary = r": 4199 images, 1 rejected \(reasons in \S+\); .* images/s"
    glassbox("predict", *options, "--out", alone)
    assert re.search(summary, capsys.readouterr().out)
    glassbox("predict", *options, "--out", together, "--workers", str(workers))
    assert re.search(summary, capsys.readouterr().out)
    assert together.read_bytes() == alone.read_bytes()
    assert json.loads((tmp_path / "together.rejected.jsonl").read_text())["id"] == "bad"


def test_scores_do_not_depend_on_the_number_of_workers(
    model: Path, noise: Path, tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model", model, "--data", noise)
    summary = r"accuracy 0\.\d{4}  loss \d\.\d{4}  AUC 0\.\d{4}  \(2100 images of split validation\)"
    for name, workers in (("alone", ()), ("two", ("--workers", "2"))):
        glassbox("evaluate", *options, "--out", tmp_path / f"{name}.json", *workers)
        pixels, outputs, fit, classes, scores, *table, throughput = capsys.readouterr().out.splitlines()
        assert pixels.startswith(
            "pixels: 0 to 255 (scale=1, offset=0): its graph turns this range into 0 to 1"
        )
        assert outputs.startswith("outputs: probabilities: ")
        assert fit.startswith("images of other proportions: stretched: assumed")
        assert classes.startswith("classes: by position (the file has no class names)")
        assert re.fullmatch(summary, scores)
        assert [line.split()[0] for line in table] == ["true", "a", "b"]
        assert "images/s" in throughput
    assert (tmp_path / "alone.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_an_error_of_a_worker_is_one_sentence(
    model: Path, noise: Path, tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(model), "--data", str(noise), "--split", "train"]
    assert main(["evaluate", *options, "--out", str(tmp_path / "scores.json"), "--workers", "2"]) == 3
    message = capsys.readouterr().err.strip()
    assert message.startswith("glassbox: Expected images that can be decoded. Received: id=bad. Fix:")
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


def find_busy_workers() -> list[psutil.Process]:
    """Finds the Ray workers below this process that run a task."""
    return [p for p in find_descendants(os.getpid()) if read_title(p) == "ray::_predict_block_task"]


@pytest.mark.slow
def test_the_work_of_a_killed_worker_is_repeated(model: Path, tmp_path: Path, ray_cluster: None) -> None:
    """A worker is killed once some blocks are predicted and others are not."""
    options = ["--model", str(model), "--data", PHOTOS, "--out"]
    out = tmp_path / "out.csv"
    driver = subprocess.Popen(
        [sys.executable, "-c", GLASSBOX, "predict", *options, str(out), "--workers", "2"],
        cwd=ROOT,
        env=os.environ | describe_ray(),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (list(tmp_path.glob(".tmp-*/*")) and find_busy_workers()):
        assert driver.poll() is None, driver.stderr.read()
        time.sleep(0.01)
    for worker in find_busy_workers()[:1]:
        worker.kill()
    assert driver.wait() == 0, driver.stderr.read()
    glassbox("predict", *options, tmp_path / "alone.csv")
    assert out.read_bytes() == (tmp_path / "alone.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.csv", "out.csv"]


def test_accuracy_of_a_model_trained_elsewhere(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_cluster: None
) -> None:
    """The digits are read from their source, without shards; the accuracy is the published one."""
    import gzip

    from pyarrow import parquet as pq

    model = shared / "seed_results" / "mnist_cnn.keras"
    digits = shared / "data" / "mnist"
    out = tmp_path / "out.parquet"
    glassbox("predict", "--model", model, "--data", f"idx:{digits}", "--split", "validation", "--out", out)
    content = gzip.decompress((digits / "t10k-labels-idx1-ubyte.gz").read_bytes())
    labels = np.frombuffer(content, np.uint8, offset=8)
    names = pq.read_table(out)["class"].to_pylist()
    predicted = np.array([int(name.removeprefix("class_")) for name in names])
    assert (predicted == labels).mean() == pytest.approx(0.9833, abs=1e-4)
