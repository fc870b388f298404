"""Measures how fast photos become augmented batches, against raw decoding and other libraries.

`python tests/benchmarks/input.py --help`; takes some minutes on two cores.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import photos as photo_files
import runner
from harness import CORES, Candidate
from input_peers import AUGMENTATION
from results import LIMIT, Benchmark, Goal

from pipelines.shards.build import build_shards
from pipelines.sources import open_source
from pipelines.spec import ShardSpec

BATCH = 64
SIZE = 150
EPOCHS = 5
TITLE = (
    f"Input: JPEG photos to {SIZE} x {SIZE} float batches of {BATCH}, "
    "rotated, shifted, sheared, zoomed, flipped"
)
LIMITS = ("raw: simplejpeg, threads", "raw: simplejpeg, processes")
READER = "order + reader alone"
EXACT = "ours: exact"
FAST = "ours: fast decode"
HOST = "ours: cached in RAM"
GENERATOR = "Keras ImageDataGenerator"
LAYERS = "Keras image_dataset + random layers"
PROJECTIVE = "tf.data + ImageProjectiveTransformV3"
TORCH = "PyTorch DataLoader + torchvision"
# Photos of 500 x 375 pixels and 110 kB, from which ImageNet's recipes crop images of 224 x 224.
IMAGENET_SIZE = (224, 224)
IMAGENET_CROP = {"crop": (0.08, 1.0), "flip": True}
CROPS = {
    "tfdata": ("ImageNet's crop: on the device", "ImageNet's crop: while decoding"),
    "dali": (
        "ImageNet's crop: on the device, DALI on the CPU",
        "ImageNet's crop: while decoding, DALI on the CPU",
    ),
}
CHANGES_ON_DEVICE = {  # fields of an `AugmentSpec` by name; of images that are decoded once
    "ImageNet's crop, cached in RAM": IMAGENET_CROP,
    "ImageNet's crop and RandAugment, cached in RAM": IMAGENET_CROP | {"randaugment": 7},
}
FEEDS = {  # name by number of pipelines
    1: "feed of 110 kB JPEGs, decoder replaced by a stub",
    8: "feed of 110 kB JPEGs, eight pipelines, stub",
}
FEED_EPOCHS = 20  # of a round, which would be too short
DEVICES = 8  # logical devices of a process, each with its slice of the batch
DALI = "ours: exact, DALI on the CPU"
PER_DEVICE = {  # name by backend
    "tfdata": f"ours: exact, {DEVICES} devices",
    "dali": f"ours: exact, {DEVICES} devices, DALI on the CPU",
}
UNCACHED = {"cache": "none", "backend": "tfdata", "image_size": (SIZE, SIZE)}


def list_imagenet_candidates(shards: Path) -> list[Candidate]:
    """Returns the candidates that read photos of the size of ImageNet's."""
    settings = {"shards": str(shards), "batch": BATCH, "cache": "none", "image_size": IMAGENET_SIZE}
    decoded = IMAGENET_CROP | {"crop_at": "decode"}
    candidates = []
    for backend, names in CROPS.items():
        for name, augment in zip(names, (IMAGENET_CROP, decoded), strict=True):
            changes = {"augment": augment, "backend": backend, "epochs": 1}
            candidates.append(Candidate(name, "input_ours:ours", settings | changes, is_plotted=False))
    for name, augment in CHANGES_ON_DEVICE.items():
        changes = {"augment": augment, "backend": "tfdata", "epochs": EPOCHS, "cache": "host"}
        candidates.append(
            Candidate(name, "input_ours:ours", settings | changes, epochs=EPOCHS, is_plotted=False)
        )
    for pipelines, name in FEEDS.items():
        changes = {"augment": decoded, "backend": "dali", "epochs": FEED_EPOCHS, "pipelines": pipelines}
        candidates.append(
            Candidate(name, "input_ours:feed", settings | changes, epochs=FEED_EPOCHS, is_plotted=False)
        )
    return candidates


def list_candidates(photos: Path, shards: Path, torch_python: str | None) -> list[Candidate]:
    """Returns all candidates of small photos in the order of the table."""
    raw = {"shards": str(shards), "threads": CORES}
    tensorflow = {"shards": str(shards), "batch": BATCH}
    peer = {"folder": str(photos), "batch": BATCH, "size": SIZE}
    torch = peer | {"workers": CORES}

    def ours(name: str, **changes: Any) -> Candidate:
        settings = {"shards": str(shards), "batch": BATCH, "augment": AUGMENTATION, "epochs": EPOCHS}
        return Candidate(name, "input_ours:ours", settings | UNCACHED | changes, epochs=EPOCHS)

    return [
        Candidate(LIMITS[0], "input_ours:raw_threads", raw),
        Candidate(LIMITS[1], "input_ours:raw_processes", raw),
        Candidate("raw: TensorFlow's decoder", "input_ours:raw_tensorflow", tensorflow),
        Candidate(
            "raw: TensorFlow's decoder + resizing",
            "input_ours:raw_tensorflow",
            tensorflow | {"size": SIZE},
        ),
        Candidate(READER, "input_ours:order_and_reader", tensorflow, cores=1, is_plotted=False),
        ours(EXACT),
        ours(FAST, decode="fast"),
        ours("ours: exact, not augmented", augment=None),
        ours(HOST, cache="host"),
        ours("ours: cached in device memory", cache="device"),
        ours(DALI, backend="dali"),
        *(ours(name, backend=backend, devices=DEVICES) for backend, name in PER_DEVICE.items()),
        Candidate(GENERATOR, "input_peers:generator", peer),
        Candidate(LAYERS, "input_peers:keras_layers", peer),
        Candidate(PROJECTIVE, "input_peers:projective_transform", peer),
        Candidate(TORCH, "input_peers:torch_loader", torch, python=torch_python or sys.executable),
    ]


def list_earlier_candidates(candidates: list[Candidate], checkout: Path) -> list[Candidate]:
    """Returns the candidates of this project once more, with the code of an earlier working tree."""
    names = (EXACT, FAST, HOST, DALI, *PER_DEVICE.values())
    earlier = []
    for candidate in candidates:
        if candidate.name in names:
            name = candidate.name.replace("ours", "before")
            earlier.append(replace(candidate, name=name, checkout=str(checkout.resolve()), is_plotted=False))
    return earlier


GOALS = (
    Goal(READER, READER, LIMIT, 0.05, "<= 0.05 of the limit's time", is_overhead=True),
    Goal(EXACT, EXACT, LIMIT, 0.65, ">= 0.65 of the limit"),
    Goal(FAST, FAST, LIMIT, 0.8, ">= 0.8 of the limit"),
    Goal(HOST, HOST, EXACT, 3.0, ">= 3 x ours: exact"),
    Goal(GENERATOR, EXACT, GENERATOR, 8.0, "ours >= 8 x this"),
    *(Goal(name, EXACT, name, 1.0, "ours >= 1 x this") for name in (LAYERS, PROJECTIVE, TORCH)),
    *(Goal(fast, fast, slow, 1.0, "faster than cropping on the device") for slow, fast in CROPS.values()),
)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark and returns its figures."""
    parser = runner.build_parser(__doc__ or "")
    parser.add_argument(
        "--torch-python",
        metavar="PATH",
        help="a Python with PyTorch and torchvision (default: this one)",
    )
    parser.add_argument(
        "--before",
        type=Path,
        metavar="CHECKOUT",
        help="working tree of an earlier version that reads these shards, measured in the same run",
    )
    options = parser.parse_args(arguments)

    def build(photos: Path, scratch: Path) -> Benchmark:
        shards = scratch / "shards"
        build_shards(open_source(f"folder:{photos}"), shards, ShardSpec(validation=0.0))
        photo_files.enlarge(photos, scratch / "large")
        large = scratch / "large-shards"
        build_shards(open_source(f"folder:{scratch / 'large'}"), large, ShardSpec(validation=0.0))
        candidates = list_candidates(photos, shards, options.torch_python)
        if options.before:
            candidates += list_earlier_candidates(candidates, options.before)
        return Benchmark([*candidates, *list_imagenet_candidates(large)], GOALS, LIMITS)

    return runner.run(TITLE, options, build)


if __name__ == "__main__":
    main()
