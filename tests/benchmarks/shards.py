"""How fast a folder of photos becomes a shard set, beside what the machine can do at best and beside other builders.

`python tests/benchmarks/shards.py --help`; takes some minutes on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import large
import runner
from arena import CORES, Contestant
from table import LIMIT, Field, Goal

TITLE = "Shards: a folder of JPEG photos to a shard set, Ray's start apart"
LIMITS = ("raw: decode, threads", "raw: decode, processes")
ENCODE, SCALE = "raw: decode + encode", "raw: decode + scale to 256 + encode"
COPY = "raw: cp -r + sync"
FOUND, HEADER = "ours: as found, all decoded", "ours: as found, --check header"
ENCODED, SCALED = "ours: jpeg:90", "ours: jpeg:90 --store-size 256"
TFDS, IMG2DATASET, IMG2DATASET_SCALED = (
    "tensorflow-datasets, not decoded",
    "img2dataset, as found",
    "img2dataset, jpeg 90 at 256",
)

GOALS = (
    Goal(FOUND, FOUND, LIMIT, 0.75, ">= 0.75 of the limit"),
    Goal(HEADER, HEADER, COPY, 0.5, ">= 0.5 of cp -r + sync"),
    Goal(ENCODED, ENCODED, ENCODE, 0.85, ">= 0.85 of decode + encode"),
    Goal(SCALED, SCALED, SCALE, 0.85, ">= 0.85 of decode + scale + encode"),
    Goal(TFDS, HEADER, TFDS, 1.0, "ours, header >= 1 x this"),
    Goal(IMG2DATASET, FOUND, IMG2DATASET, 1.0, "ours, as found >= 1 x this"),
    Goal(IMG2DATASET_SCALED, SCALED, IMG2DATASET_SCALED, 1.0, "ours, at 256 >= 1 x this"),
)


def contestants(photos: Path, scratch: Path, img2dataset_python: str | None) -> list[Contestant]:
    """Everybody, in the order of the table."""
    bare = {"folder": str(photos), "cores": CORES}
    build = {"folder": str(photos), "scratch": str(scratch)}
    foreign = img2dataset_python or sys.executable
    scaled = {"quality": 90, "size": 256}
    return [
        Contestant(LIMITS[0], "shards_ours:bare", bare | {"threads": True}),
        Contestant(LIMITS[1], "shards_ours:bare", bare | {"threads": False}),
        Contestant(ENCODE, "shards_ours:bare", bare | {"threads": False, "quality": 90}),
        Contestant(SCALE, "shards_ours:bare", bare | {"threads": False, **scaled}),
        Contestant(COPY, "shards_ours:copy", build),
        Contestant(FOUND, "shards_ours:ours", build, "ours"),
        Contestant(HEADER, "shards_ours:ours", build | {"check": "header"}, "ours"),
        Contestant(ENCODED, "shards_ours:ours", build | {"encoding": "jpeg:90"}, "ours"),
        Contestant(SCALED, "shards_ours:ours", build | {"encoding": "jpeg:90", "store_size": 256}, "ours"),
        Contestant("ours: command line, with Ray's start", "shards_ours:command_line", build),
        Contestant(TFDS, "shards_peers:tensorflow_datasets", build),
        Contestant(IMG2DATASET, "shards_peers:img2dataset", build | {"cores": CORES}, python=foreign),
        Contestant(
            IMG2DATASET_SCALED, "shards_peers:img2dataset", build | {"cores": CORES, **scaled}, python=foreign
        ),
    ]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark."""
    parser = runner.parser(__doc__ or "")
    parser.add_argument(
        "--img2dataset-python", metavar="PATH", help="a Python that has img2dataset, if this one has not"
    )
    parser.add_argument(
        "--large",
        action="store_true",
        help="instead: memory and speed with 20,000 and 200,000 small images; many minutes",
    )
    options = parser.parse_args(arguments)
    if options.large:
        return large.run(options)

    def enter(photos: Path, scratch: Path) -> Field:
        return Field(contestants(photos, scratch, options.img2dataset_python), GOALS, LIMITS)

    return runner.run(TITLE, options, enter)


if __name__ == "__main__":
    main()
