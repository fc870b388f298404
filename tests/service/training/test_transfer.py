"""Transfer learning pays: what was learned of some digits helps with others, of which there are few."""

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


def digits(source: str, out: Path, first: int, train: int, held_out: int) -> Path:
    """Shards of five digits from `first` on, with so many images of each."""
    source_of = open_source(source)
    splits: dict[str, list[Record]] = {}
    for split, wanted in (("train", train), ("validation", held_out)):
        left, splits[split] = dict.fromkeys(range(first, first + 5), wanted), []
        for example in source_of.read(split, 0, source_of.counts()[split]):
            if left.get(example.label):
                left[example.label] -= 1
                splits[split].append(Record(example.image, example.label - first, example.id, (28, 28, 1)))
    return write_shards(out, [str(digit) for digit in range(first, first + 5)], splits)


def trained(out: Path, shards: Path, **recipe: Any) -> Run:
    settings = {
        "preset": "test",
        "shards": str(shards),
        "model": "mnist_cnn",
        "data": {"image_size": [28, 28], "channels": 1},
    }
    return fit_run(out, RunConfig.model_validate(settings | {"global_batch": 10} | recipe))


def test_convolutions_learned_on_other_digits_help_where_images_are_few(shared: Path, tmp_path: Path) -> None:
    """3,000 images each of 0 to 4, then five each of 5 to 9, with and without what the first network's convolutions know."""
    source = f"idx:{shared / 'data' / 'mnist'}"
    base = trained(
        tmp_path / "base", digits(source, tmp_path / "many", 0, 3000, 200), epochs=4, global_batch=64
    )
    assert base.metrics()[-1]["val_accuracy"] > 0.98
    few = digits(source, tmp_path / "few", 5, 5, 400)
    ways = {"scratch": {}, "transferred": {"weights": str(base.model_path), "freeze": "conv*"}}
    found: dict[str, list[float]] = {way: [] for way in ways}
    for seed in range(3):
        for way, recipe in ways.items():
            run = trained(tmp_path / f"{way}{seed}", few, epochs=40, evaluate_every=40, seed=seed, **recipe)
            found[way].append(run.metrics()[-1]["val_accuracy"])
    assert min(found["transferred"]) > max(found["scratch"]) + 0.05, found
