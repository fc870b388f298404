"""How fast the training loop is, beside the bare compiled step, `model.fit`, and the way of the tutorials.

`python tests/benchmarks/train.py --help`; a table for each model; takes some minutes a model on two cores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import runner
from arena import Contestant
from input_peers import AUGMENTATION
from table import LIMIT, Field, Goal

from pipelines.shards.build import build_shards
from pipelines.sources import open_source
from pipelines.spec import ShardSpec

BARE, OURS, FIT = (
    "bare step, one batch in memory",
    "ours: the loop, images in RAM",
    "model.fit, the same images in memory",
)
DIGITS = {"image_size": [28, 28], "channels": 1}
PHOTOS = {"image_size": [150, 150]}
# model: batch, data, images a round (None: all photos), share of the bare step to reach, times model.fit to reach
MODELS: dict[str, tuple[int, dict[str, Any], int | None, float | None, float]] = {
    "mnist_mlp": (32, DIGITS, 22_500, None, 2.5),
    "mnist_cnn": (64, DIGITS, 22_500, 0.90, 1.0),
    "mnist_best": (60, DIGITS, 3_000, None, 1.0),
    "cats_dogs_small": (20, PHOTOS, None, 0.97, 1.0),
    "cats_dogs_small_dropout": (20, PHOTOS, None, None, 1.0),
    "cats_dogs_lecture": (128, PHOTOS, None, None, 1.0),
    "cats_dogs_lecture_dropout": (128, PHOTOS, None, None, 1.0),
    "cats_dogs_best": (32, {"image_size": [112, 112]}, None, None, 1.0),
    "mobilenetv3small": (32, {"image_size": [96, 96]}, None, None, 1.0),
    "small_cnn": (32, {"image_size": [64, 64]}, None, None, 1.0),
    "linear": (32, {"image_size": [64, 64]}, None, None, 1.0),
}


def beside_fit(model: str) -> Callable[[Path, Path], Field]:
    """The field of one model: the bare step, our loop, `model.fit`."""
    batch, data, rows, share, times = MODELS[model]

    def enter(photos: Path, scratch: Path) -> Field:
        shards = _shards(photos, scratch / "shards", rows)
        settings = {"model": model, "shards": str(shards), "batch": batch, "data": data}
        field = [
            Contestant(BARE, "train_contestants:bare", settings),
            Contestant(OURS, "train_contestants:ours", settings),
            Contestant(FIT, "train_contestants:keras_fit", settings),
        ]
        goals = [Goal(FIT, OURS, FIT, times, f"ours >= {times:g} x this")]
        if share:
            goals.append(Goal(OURS, OURS, LIMIT, share, f">= {share} of the bare step"))
        return Field(field, goals, (BARE,), rows, "noise of 28 x 28 pixels" if rows else None)

    return enter


def beside_the_tutorial(photos: Path, scratch: Path) -> Field:
    """The field of the published experiment: every image decoded and augmented, in both ways."""
    shards = _shards(photos, scratch / "shards", None)
    ours = {
        "model": "cats_dogs_small",
        "shards": str(shards),
        "batch": 20,
        "data": PHOTOS,
        "augment": AUGMENTATION,
    }
    decoding = ours | {"data": PHOTOS | {"cache": "none"}}
    tutorial = "the tutorials' way: ImageDataGenerator + fit"
    field = [
        Contestant("ours: decoded every epoch", "train_contestants:ours", decoding),
        Contestant("ours: images in RAM", "train_contestants:ours", ours),
        Contestant(
            tutorial,
            "train_contestants:tutorial",
            {"model": "cats_dogs_small", "folder": str(photos), "batch": 20},
        ),
    ]
    return Field(field, [Goal(tutorial, "ours: images in RAM", tutorial, 1.0, "ours >= 1 x this")])


def on_two_workers(photos: Path, scratch: Path) -> Field:
    """The field of one worker with two cores and two workers with one each, at a global batch of 128."""
    settings = {
        "model": "cats_dogs_small",
        "shards": str(_shards(photos, scratch / "shards", None)),
        "batch": 128,
        "data": PHOTOS,
    }
    one, two = "one worker, two cores", "two workers, one core each"
    field = [
        Contestant(
            one, "train_contestants:workers", settings | {"workers": 1, "scratch": str(scratch / "one")}
        ),
        Contestant(
            two, "train_contestants:workers", settings | {"workers": 2, "scratch": str(scratch / "two")}
        ),
    ]
    return Field(field, [Goal(two, two, one, 0.9, ">= 0.9 x one worker")], (one,))


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Runs the benchmark, one table after the other."""
    tables = {model: (f"{model}, batch {MODELS[model][0]}", beside_fit(model)) for model in MODELS}
    tables["tutorial"] = (
        "cats_dogs_small, batch 20, rotated, shifted, sheared, zoomed, flipped",
        beside_the_tutorial,
    )
    tables["workers"] = ("cats_dogs_small, global batch 128", on_two_workers)
    parser = runner.parser(__doc__ or "")
    parser.add_argument(
        "--table", action="append", choices=list(tables), help="only this table; may be repeated"
    )
    options = parser.parse_args(arguments)
    found = []
    for name in options.table or tables:
        if options.json:
            options.json = options.json.with_stem(f"{options.json.stem.partition('-')[0]}-{name}")
        print()
        found.append(runner.run(f"Training: {tables[name][0]}", options, tables[name][1]))
    return found


def _shards(photos: Path, shards: Path, rows: int | None) -> Path:
    """A shard set of the photos, or of so many noisy digits."""
    if rows is None:
        build_shards(open_source(f"folder:{photos}"), shards, ShardSpec(validation=0.0))
        return shards
    import numpy as np

    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from shard_samples import write_shards

    from pipelines.records import Record

    draw = np.random.default_rng(0)
    digits = [
        Record(draw.integers(0, 256, 784).astype(np.uint8).tobytes(), i % 10, str(i), (28, 28, 1))
        for i in range(rows)
    ]
    return write_shards(shards, [str(digit) for digit in range(10)], {"train": digits}, encoding="raw")


if __name__ == "__main__":
    main()
