"""The lines of the README that use Keras alone give the probability of `glassbox predict`."""

from __future__ import annotations

import re
from pathlib import Path

import glassbox
import numpy as np
import pytest
from report_samples import metrics
from shard_samples import make_record, write_shards

from service.models import Task, build_model
from service.models.metadata import ModelMetadata
from service.runs import Run

ROOT = Path(__file__).resolve().parents[3]
SNIPPET = re.compile(r"^```python\n(import keras\nimport tensorflow as tf\n.*?)^```$", re.M | re.S)
CLASSES = ("cats", "dogs")


def test_keras_alone_gives_the_probability_of_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also after the file has been taken out of its run: it keeps class names and preprocessing."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (61, 83, 3)).astype(np.uint8)
    record = make_record(pixels, 0, "0.png")
    photo = tmp_path / "photos/cats/0.png"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(record.image)
    shards = write_shards(tmp_path / "shards", CLASSES, {"train": [record]})
    run = Run(tmp_path / "runs/first")
    run.create({"preset": "demo", "model": "small_cnn", "shards": str(shards), "epochs": 1})
    run.write_metrics(metrics(1))
    run.write_metadata(ModelMetadata(CLASSES, "ab" * 32, (32, 24), 3))
    model = build_model("small_cnn", Task((32, 24, 3), 2, (128.0,) * 3, (64.0,) * 3))
    run.write_model(model.save)

    blocks = SNIPPET.findall((ROOT / "README.md").read_text())
    assert len(blocks) == 1
    exec(blocks[0], {})
    printed = float(capsys.readouterr().out.strip("[] \n"))
    moved = run.model_path.rename(tmp_path / "moved.keras")
    run.remove()
    table = glassbox.predict(moved, f"photos:{photo.parent}")
    assert table.column_names[2:] == list(CLASSES)
    assert table["dogs"].to_pylist() == pytest.approx([printed], abs=1e-6)
    assert 0.01 < printed < 0.99  # a saturated model would hide a difference
