"""Measures the training loop against the bare compiled step, `model.fit` and tutorial code.

`python tests/benchmarks/train.py --help`; one table per model, some minutes each on two cores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import runner
from harness import Candidate
from input_peers import AUGMENTATION
from results import LIMIT, Benchmark, Goal

from pipelines.shards.build import build_shards
from pipelines.sources import open_source
from pipelines.spec import ShardSpec

BARE_STEP = "bare step, one batch in memory"
OURS = "ours: the loop, images in RAM"
FIT = "model.fit, the same images in memory"
DECODED = "ours: decoded every epoch"
CACHED = "ours: images in RAM"
TUTORIAL = "tutorial code: ImageDataGenerator + fit"
ONE_WORKER = "one worker, two cores"
TWO_WORKERS = "two workers, one core each"
DIGITS = {"image_size": [28, 28], "channels": 1}
PHOTOS = {"image_size": [150, 150]}

BuildBenchmark = Callable[[Path, Path], Benchmark]  # from the photos and a scratch directory


class Setup(NamedTuple):
    """Settings and goals of one model.

    Attributes:
        batch: Images per batch.
        data: Fields of a `DataSpec`.
        rows: Number of generated digits; None for all photos.
        share: Fraction of the bare step's speed to reach; None for no such goal.
        fit_ratio: Speed to reach as a multiple of `model.fit`.
    """

    batch: int
    data: dict[str, Any]
    rows: int | None = None
    share: float | None = None
    fit_ratio: float = 1.0


SETUPS = {
    "mnist_mlp": Setup(32, DIGITS, rows=22_500, fit_ratio=2.5),
    "mnist_cnn": Setup(64, DIGITS, rows=22_500, share=0.90),
    "mnist_best": Setup(60, DIGITS, rows=3_000),
    "cats_dogs_small": Setup(20, PHOTOS, share=0.97),
    "cats_dogs_small_dropout": Setup(20, PHOTOS),
    "cats_dogs_lecture": Setup(128, PHOTOS),
    "cats_dogs_lecture_dropout": Setup(128, PHOTOS),
    "cats_dogs_best": Setup(32, {"image_size": [112, 112]}),
    "mobilenetv3small": Setup(32, {"image_size": [96, 96]}),
    "small_cnn": Setup(32, {"image_size": [64, 64]}),
    "linear": Setup(32, {"image_size": [64, 64]}),
}


def compare_with_fit(model: str) -> BuildBenchmark:
    """Compares the bare step, the loop and `model.fit` for one model."""
    setup = SETUPS[model]

    def build(photos: Path, scratch: Path) -> Benchmark:
        shards = _build_shard_set(photos, scratch / "shards", setup.rows)
        settings = {"model": model, "shards": str(shards), "batch": setup.batch, "data": setup.data}
        candidates = [
            Candidate(BARE_STEP, "train_candidates:bare_step", settings),
            Candidate(OURS, "train_candidates:ours", settings),
            Candidate(FIT, "train_candidates:keras_fit", settings),
        ]
        goals = [Goal(FIT, OURS, FIT, setup.fit_ratio, f"ours >= {setup.fit_ratio:g} x this")]
        if setup.share:
            goals.append(Goal(OURS, OURS, LIMIT, setup.share, f">= {setup.share} of the bare step"))
        note = "noise of 28 x 28 pixels" if setup.rows else None
        return Benchmark(candidates, goals, (BARE_STEP,), setup.rows, note)

    return build


def compare_with_tutorial(photos: Path, scratch: Path) -> Benchmark:
    """Compares the published experiment in tutorial code and here, with every image augmented."""
    shards = _build_shard_set(photos, scratch / "shards", None)
    tutorial = {"model": "cats_dogs_small", "folder": str(photos), "batch": 20}
    ours = {
        "model": "cats_dogs_small",
        "shards": str(shards),
        "batch": 20,
        "data": PHOTOS,
        "augment": AUGMENTATION,
    }
    uncached = ours | {"data": PHOTOS | {"cache": "none"}}
    candidates = [
        Candidate(DECODED, "train_candidates:ours", uncached),
        Candidate(CACHED, "train_candidates:ours", ours),
        Candidate(TUTORIAL, "train_candidates:tutorial", tutorial),
    ]
    return Benchmark(candidates, [Goal(TUTORIAL, CACHED, TUTORIAL, 1.0, "ours >= 1 x this")])


def compare_workers(photos: Path, scratch: Path) -> Benchmark:
    """Compares one worker with two cores and two workers with one core each, at a global batch of 128."""
    shards = _build_shard_set(photos, scratch / "shards", None)
    settings = {"model": "cats_dogs_small", "shards": str(shards), "batch": 128, "data": PHOTOS}
    one = settings | {"workers": 1, "scratch": str(scratch / "one")}
    two = settings | {"workers": 2, "scratch": str(scratch / "two")}
    candidates = [
        Candidate(ONE_WORKER, "train_candidates:workers", one),
        Candidate(TWO_WORKERS, "train_candidates:workers", two),
    ]
    goal = Goal(TWO_WORKERS, TWO_WORKERS, ONE_WORKER, 0.9, ">= 0.9 x one worker")
    return Benchmark(candidates, [goal], (ONE_WORKER,))


def list_tables() -> dict[str, tuple[str, BuildBenchmark]]:
    """Returns the title and the builder of every table by name."""
    tables: dict[str, tuple[str, BuildBenchmark]] = {}
    for model, setup in SETUPS.items():
        tables[model] = (f"{model}, batch {setup.batch}", compare_with_fit(model))
    augmented = "cats_dogs_small, batch 20, rotated, shifted, sheared, zoomed, flipped"
    tables["tutorial"] = (augmented, compare_with_tutorial)
    tables["workers"] = ("cats_dogs_small, global batch 128", compare_workers)
    return tables


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Runs the benchmark, one table after the other, and returns the figures of all."""
    tables = list_tables()
    parser = runner.build_parser(__doc__ or "")
    parser.add_argument(
        "--table", action="append", choices=list(tables), help="only this table; may be repeated"
    )
    options = parser.parse_args(arguments)
    runs = []
    for name in options.table or tables:
        title, build = tables[name]
        if options.json:
            options.json = options.json.with_stem(f"{options.json.stem.partition('-')[0]}-{name}")
        print()
        runs.append(runner.run(f"Training: {title}", options, build))
    return runs


def _build_shard_set(photos: Path, shards: Path, rows: int | None) -> Path:
    """Builds a shard set of the photos, or of `rows` digits of noise."""
    if rows is None:
        build_shards(open_source(f"folder:{photos}"), shards, ShardSpec(validation=0.0))
        return shards
    import numpy as np

    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from shard_samples import write_shards

    from pipelines.records import Record

    generator = np.random.default_rng(0)
    digits = []
    for index in range(rows):
        pixels = generator.integers(0, 256, 784).astype(np.uint8)
        digits.append(Record(pixels.tobytes(), index % 10, str(index), (28, 28, 1)))
    classes = [str(digit) for digit in range(10)]
    return write_shards(shards, classes, {"train": digits}, encoding="raw")


if __name__ == "__main__":
    main()
