"""`glassbox evaluate` and `glassbox predict`, alone and on a cluster: the same to the bit, even when workers are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from report_samples import brightness_model
from shard_samples import record, write_shards

from pipelines.records import Record
from service.cli import main

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
PHOTOS = "synthetic:evidence,train=2600,validation=0,size=32"  # three blocks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "brightness.keras"
    brightness_model().save(path)
    return path


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks and a bit in each of two splits; one row cannot be decoded."""
    draw = np.random.default_rng(2)

    def row(i: int) -> Record:
        return record(draw.integers(0, 256, (8, 8)).astype(np.uint8), i % 2, f"{i}")

    train = [row(i) for i in range(2100)]
    train[1500] = Record(b"junk", 0, "bad", (8, 8, 1))
    return write_shards(
        tmp_path_factory.mktemp("noise") / "set",
        ("a", "b"),
        {"train": train, "validation": [row(i) for i in range(2100)]},
    )


def glassbox(*words: str | Path) -> None:
    assert main([str(word) for word in words]) == 0


def test_any_number_of_workers_gives_the_same(
    model: Path, noise: Path, tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in ("csv", "parquet"):
        for name, workers in (("alone", []), ("two", ["--workers", "2"]), ("three", ["--workers", "3"])):
            glassbox(
                "predict",
                "--model",
                model,
                "--data",
                noise,
                "--out",
                tmp_path / f"{name}.{suffix}",
                *workers,
                "--scale",
                "0.7",
            )
            assert re.search(
                r": 4199 images, 1 rejected \(reasons in \S+\); .* images/s", capsys.readouterr().out
            )
        alone, *others = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("alone", "two", "three"))
        assert all(other == alone for other in others)
    assert json.loads((tmp_path / "two.rejected.jsonl").read_text())["id"] == "bad"
    for name, workers in (("alone", []), ("two", ["--workers", "2"])):
        glassbox("evaluate", "--model", model, "--data", noise, "--out", tmp_path / f"{name}.json", *workers)
        figures, *table, pace = capsys.readouterr().out.splitlines()
        assert re.fullmatch(
            r"accuracy 0\.\d{4}  loss \d\.\d{4}  AUC 0\.\d{4}  \(2100 images of split validation\)", figures
        )
        assert [line.split()[0] for line in table] == ["true", "a", "b"]
        assert "images/s" in pace
    assert (tmp_path / "alone.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_what_a_worker_meets_is_one_sentence(
    model: Path, noise: Path, tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "evaluate",
        "--model",
        str(model),
        "--data",
        str(noise),
        "--split",
        "train",
        "--out",
        str(tmp_path / "scores.json"),
    ]
    assert main([*words, "--workers", "2"]) == 3
    message = capsys.readouterr().err.strip()
    assert message.startswith("glassbox: Expected images that can be decoded. Received: id=bad. Fix:")
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


def workers_of(cluster: int) -> list[int]:
    """Processes below one that are answering."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes()

    def below(process: int) -> bool:
        return process == cluster or (process in parents and below(parents[process]))

    return [process for process, name in names.items() if name.startswith(b"ray::_task") and below(process)]


def test_a_worker_that_is_killed_is_made_good_for(model: Path, tmp_path: Path, ray_cluster: None) -> None:
    import ray

    code = "import sys; from service.cli import main; sys.exit(main())"
    words = ["predict", "--model", str(model), "--data", PHOTOS, "--out", str(tmp_path / "out.csv")]
    command = [sys.executable, "-c", code, *words, "--workers", "2"]
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    driver = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    for pieces in (0, 1):
        while driver.poll() is None and not (
            len(list(tmp_path.glob(".tmp-*/*"))) >= pieces and workers_of(os.getpid())
        ):
            time.sleep(0.02)
        assert driver.poll() is None, driver.stderr.read()
        time.sleep(0.3)
        for worker in workers_of(os.getpid())[:1]:
            os.kill(worker, signal.SIGKILL)
    assert driver.wait(200) == 0, driver.stderr.read()
    glassbox(*words[:-1], tmp_path / "alone.csv")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.csv", "out.csv"]


def test_truth_of_a_model_made_elsewhere(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_cluster: None
) -> None:
    """The digits of a source, asked about without shards: as many are right as where the model was made."""
    import gzip

    from pyarrow import parquet as pq

    model, digits = shared / "seed_results" / "mnist_cnn.keras", shared / "data" / "mnist"
    glassbox(
        "predict",
        "--model",
        model,
        "--data",
        f"idx:{digits}",
        "--split",
        "validation",
        "--out",
        tmp_path / "out.parquet",
    )
    table = pq.read_table(tmp_path / "out.parquet")
    labels = np.frombuffer(
        gzip.decompress((digits / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8
    )
    predicted = np.array([int(name.removeprefix("class_")) for name in table["class"].to_pylist()])
    assert (predicted == labels).mean() == 0.9833
