"""Transfer learning helps: what was learned from some digits improves others with few images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shard_samples import write_shards
from training_samples import fit_run

from pipelines.records import Record
from pipelines.sources import open_source
from service.config import RunConfig
from service.runs import Run

pytestmark = pytest.mark.slow


def write_digits(uri: str, out: Path, first: int, train: int, held_out: int) -> Path:
    """Writes shards of five digits from `first` on, with `train` and `held_out` images of each."""
    source = open_source(uri)
    splits: dict[str, list[Record]] = {}
    for split, count in (("train", train), ("validation", held_out)):
        splits[split] = []
        missing = dict.fromkeys(range(first, first + 5), count)
        for example in source.read(split, 0, source.counts()[split]):
            if missing.get(example.label):
                missing[example.label] -= 1
                label = example.label - first
                splits[split].append(Record(example.image, label, example.id, (28, 28, 1)))
    return write_shards(out, [str(digit) for digit in range(first, first + 5)], splits)


def train_run(out: Path, shards: Path, **recipe: Any) -> Run:
    settings = {
        "preset": "test",
        "shards": str(shards),
        "model": "mnist_cnn",
        "data": {"image_size": [28, 28], "channels": 1},
    }
    return fit_run(out, RunConfig.model_validate(settings | {"global_batch": 10} | recipe))


def test_convolutions_learned_on_other_digits_help_with_few_images(shared: Path, tmp_path: Path) -> None:
    """From 3,000 images each of 0 to 4 to five each of 5 to 9, against training from scratch."""
    source = f"idx:{shared / 'data' / 'mnist'}"
    base = train_run(
        tmp_path / "base", write_digits(source, tmp_path / "many", 0, 3000, 200), epochs=4, global_batch=64
    )
    assert base.metrics()[-1]["val_accuracy"] > 0.98
    few = write_digits(source, tmp_path / "few", 5, 5, 400)
    ways = {"scratch": {}, "transferred": {"weights": str(base.model_path), "freeze": "conv*"}}
    accuracies: dict[str, list[float]] = {way: [] for way in ways}
    for seed in range(3):
        for way, recipe in ways.items():
            run = train_run(tmp_path / f"{way}{seed}", few, epochs=40, evaluate_every=40, seed=seed, **recipe)
            accuracies[way].append(run.metrics()[-1]["val_accuracy"])
    assert min(accuracies["transferred"]) > max(accuracies["scratch"]) + 0.05, accuracies
