"""How fast photos become augmented batches, beside what the machine can do at best and beside other libraries.

`python tests/benchmarks/input.py --help`; takes some minutes on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import runner
from arena import CORES, Contestant
from input_peers import AUGMENTATION
from table import LIMIT, Field, Goal

from pipelines.shards.build import build_shards
from pipelines.sources import open_source
from pipelines.spec import ShardSpec

BATCH, SIZE, EPOCHS = 64, 150, 5
TITLE = f"Input: JPEG photos to {SIZE} x {SIZE} float batches of {BATCH}, rotated, shifted, sheared, zoomed, flipped"
LIMITS = ("raw: simplejpeg, threads", "raw: simplejpeg, processes")
READER = "order + reader alone"
EXACT, FAST, HOST = "ours: exact", "ours: fast decode", "ours: cached in RAM"
GENERATOR, LAYERS = "Keras ImageDataGenerator", "Keras image_dataset + random layers"
PROJECTIVE, TORCH = "tf.data + ImageProjectiveTransformV3", "PyTorch DataLoader + torchvision"
PLAIN = {"cache": "none", "backend": "tfdata", "image_size": (SIZE, SIZE)}


def contestants(photos: Path, shards: Path, torch_python: str | None) -> list[Contestant]:
    """Everybody, in the order of the table."""
    raw = {"shards": str(shards), "threads": CORES}
    peer = {"folder": str(photos), "batch": BATCH, "size": SIZE}

    def ours(name: str, **changes: Any) -> Contestant:
        settings = {
            "shards": str(shards),
            "batch": BATCH,
            "augment": AUGMENTATION,
            "epochs": EPOCHS,
            **PLAIN,
            **changes,
        }
        return Contestant(name, "input_ours:ours", settings, epochs=EPOCHS)

    return [
        Contestant(LIMITS[0], "input_ours:raw_threads", raw),
        Contestant(LIMITS[1], "input_ours:raw_processes", raw),
        Contestant(
            "raw: TensorFlow's decoder", "input_ours:raw_tensorflow", {"shards": str(shards), "batch": BATCH}
        ),
        Contestant(
            "raw: the same, and resizing",
            "input_ours:raw_tensorflow",
            {"shards": str(shards), "batch": BATCH, "size": SIZE},
        ),
        Contestant(
            READER,
            "input_ours:order_and_reader",
            {"shards": str(shards), "batch": BATCH},
            cores=1,
            drawn=False,
        ),
        ours(EXACT),
        ours(FAST, decode="fast"),
        ours("ours: exact, not augmented", augment=None),
        ours(HOST, cache="host"),
        ours("ours: cached in device memory", cache="device"),
        ours("ours: exact, DALI on the CPU", backend="dali"),
        Contestant(GENERATOR, "input_peers:generator", peer),
        Contestant(LAYERS, "input_peers:keras_layers", peer),
        Contestant(PROJECTIVE, "input_peers:projective_transform", peer),
        Contestant(
            TORCH,
            "input_peers:torch_loader",
            peer | {"workers": CORES},
            python=torch_python or sys.executable,
        ),
    ]


GOALS = (
    Goal(READER, READER, LIMIT, 0.05, "<= 0.05 of the limit's time", overhead=True),
    Goal(EXACT, EXACT, LIMIT, 0.65, ">= 0.65 of the limit"),
    Goal(FAST, FAST, LIMIT, 0.8, ">= 0.8 of the limit"),
    Goal(HOST, HOST, EXACT, 3.0, ">= 3 x ours: exact"),
    Goal(GENERATOR, EXACT, GENERATOR, 8.0, "ours >= 8 x this"),
    *(Goal(name, EXACT, name, 1.0, "ours >= 1 x this") for name in (LAYERS, PROJECTIVE, TORCH)),
)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark."""
    parser = runner.parser(__doc__ or "")
    parser.add_argument(
        "--torch-python",
        metavar="PATH",
        help="a Python that has PyTorch and torchvision, if this one has not",
    )
    options = parser.parse_args(arguments)

    def enter(photos: Path, scratch: Path) -> Field:
        build_shards(open_source(f"folder:{photos}"), scratch / "shards", ShardSpec(validation=0.0))
        return Field(contestants(photos, scratch / "shards", options.torch_python), GOALS, LIMITS)

    return runner.run(TITLE, options, enter)


if __name__ == "__main__":
    main()
