"""Measures what `glassbox shards check` costs, and which changed copies of photos it finds.

`python tests/benchmarks/health.py`; takes a minute on one core, without TensorFlow and Ray.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageEnhance, ImageOps

from pipelines.health.check import check_shards
from pipelines.health.neighbours import find_neighbours
from pipelines.health.scan import scan_shard
from pipelines.health.thumbnails import SIDE, compute_thumbnail, decode_image
from pipelines.records import Record
from pipelines.shards.files import open_files
from pipelines.shards.formats import ShardRows, open_shard, write_shard
from pipelines.shards.images import prepare_image
from pipelines.shards.manifest import VERSION, Manifest, SplitManifest, load_manifest
from pipelines.shards.split_index import SetShards, index_shard, write_split
from pipelines.spec import ShardSpec

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "cats_and_dogs_filtered"
COPIES = 150  # photos of which changed copies are made
ROUNDS = 5
Change = Callable[[Image.Image], Image.Image]


def crop(share: float) -> Change:
    """Returns a change that removes a share of the size on every side."""

    def apply(picture: Image.Image) -> Image.Image:
        width, height = picture.size
        left = round(width * share)
        top = round(height * share)
        return picture.crop((left, top, width - left, height - top))

    return apply


# Name, change and JPEG quality of the copy
CHANGES: tuple[tuple[str, Change, int], ...] = (
    ("JPEG, quality 50", lambda picture: picture, 50),
    ("JPEG, quality 20", lambda picture: picture, 20),
    ("half the size", lambda picture: picture.resize((picture.width // 2, picture.height // 2)), 90),
    ("128x128 pixels", lambda picture: picture.resize((128, 128)), 90),
    ("greyscale", lambda picture: picture.convert("L").convert("RGB"), 90),
    ("brightness + 30 %", lambda picture: ImageEnhance.Brightness(picture).enhance(1.3), 90),
    ("brightness - 30 %", lambda picture: ImageEnhance.Brightness(picture).enhance(0.7), 90),
    ("contrast + 30 %", lambda picture: ImageEnhance.Contrast(picture).enhance(1.3), 90),
    ("mirrored", ImageOps.mirror, 90),
    ("cropped by 1 % on every side", crop(0.01), 90),
    ("cropped by 2 % on every side", crop(0.02), 90),
    ("cropped by 5 % on every side", crop(0.05), 90),
    ("rotated by 2 degrees", lambda picture: picture.rotate(2), 90),
)


def read_photos(folder: Path) -> list[Record]:
    """Reads photos as the shard builder would store them."""
    records = []
    for path in sorted(folder.rglob("*.jpg")):
        prepared = prepare_image(path.read_bytes(), ShardSpec())
        records.append(Record(prepared.image, 0, str(path.relative_to(folder)), prepared.shape))
    return records


def write_set(directory: Path, splits: dict[str, list[Record]]) -> Path:
    """Writes a shard set with one shard of 256 rows after the other."""
    directory.mkdir()
    manifests = {}
    for split, records in splits.items():
        starts = range(0, len(records), 256)
        shards = [
            write_shard(directory, f"{split}-{start:05d}.arrow", records[start : start + 256])
            for start in starts
        ]
        parts = [(shard, index_shard(directory, shard)) for shard in shards]
        sidecars = write_split(directory, split, "arrow", parts)
        manifests[split] = SplitManifest(**dict(sidecars), class_counts=(len(records),), mean=None, std=None)
    Manifest(
        version=VERSION,
        format="arrow",
        encoding="as-found",
        store_size=None,
        source="folder:photos",
        fingerprint="0",
        classes=("photo",),
        splits=manifests,
        rejected=0,
    ).save(directory)
    return directory


def measure_recall(records: list[Record], scratch: Path) -> list[dict[str, object]]:
    """Checks all photos together with changed copies of some, one kind of change at a time."""
    rows = np.random.default_rng(0).permutation(len(records))[:COPIES].tolist()
    table = []
    for name, change, quality in CHANGES:
        copies = []
        for row in rows:
            with Image.open(io.BytesIO(records[row].image)) as picture:
                changed = change(picture.convert("RGB"))
            file = io.BytesIO()
            changed.save(file, "JPEG", quality=quality)
            copies.append(
                Record(file.getvalue(), 0, f"copy of {records[row].id}", (changed.height, changed.width, 3))
            )
        directory = write_set(scratch / name.replace(" ", "-"), {"train": records, "validation": copies})
        health = check_shards(directory)
        found = 0
        false = 0
        for group in health.duplicates:
            originals = {image.id.removeprefix("copy of ") for image in group.images}
            found += sum(image.split == "validation" for image in group.images if group.is_leak)
            false += len(originals) - 1
        table.append({"copy": name, "found": found / len(rows), "other pairs": false})
    return table


def measure_cost(records: list[Record], scratch: Path) -> dict[str, float]:
    """Compares the CPU time of the check with that of decoding the same photos, per photo."""
    directory = write_set(scratch / "cost", {"train": records})
    manifest = load_manifest(directory)
    files = open_files(directory)
    shards = SetShards(files, manifest)
    stack = ExitStack()
    opened = [stack.enter_context(open_shard(files, set_shard.shard)) for set_shard in shards]

    def decode(rows: ShardRows) -> None:
        for row, shape in enumerate(rows.shapes.tolist()):
            decode_image(rows.read_image(row), shape, manifest.encoding)

    def shrink(rows: ShardRows) -> None:
        for row, shape in enumerate(rows.shapes.tolist()):
            compute_thumbnail(rows.read_image(row), shape, manifest.encoding, channels=1)

    def decode_reduced(rows: ShardRows) -> None:
        for row in range(rows.rows):
            simplejpeg.decode_jpeg(rows.read_image(row), "GRAY", min_height=SIDE, min_width=SIDE)

    steps: dict[str, Callable[[], object]] = {
        "decoding": lambda: [decode(rows) for rows in opened],
        "decoding at a fraction of the size": lambda: [decode_reduced(rows) for rows in opened],
        "thumbnails": lambda: [shrink(rows) for rows in opened],
        "scan": lambda: [scan_shard(files, set_shard, manifest.encoding, 0) for set_shard in shards],
        "whole check": lambda: check_shards(directory),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    stack.close()
    return {name: statistics.median(values) / len(records) * 1e6 for name, values in seconds.items()}


def measure_search(count: int) -> float:
    """Returns the CPU seconds of the search for similar hashes among random ones."""
    hashes = np.random.default_rng(0).integers(0, 2**64, count, dtype=np.uint64)
    start = time.process_time()
    find_neighbours(hashes, hashes, 1_000_000)
    return time.process_time() - start


def main(arguments: list[str] | None = None) -> dict[str, object]:
    """Runs the benchmark and returns its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=PHOTOS, metavar="FOLDER", help="a folder of JPEG photos")
    parser.add_argument("--large", action="store_true", help="also search 1.28 million hashes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    options = parser.parse_args(arguments)
    records = read_photos(options.data)
    with tempfile.TemporaryDirectory() as folder:
        cost = measure_cost(records, Path(folder))
        recall = measure_recall(records, Path(folder))
    print(f"{len(records):,} photos, CPU time per photo:")
    for name, microseconds in cost.items():
        print(f"  {name:36} {microseconds:7.1f} us")
    added = cost["scan"] - cost["decoding at a fraction of the size"]
    print(f"  added to decoding: {added / cost['decoding']:.1%}; check / decoding: ", end="")
    print(f"{cost['whole check'] / cost['decoding']:.2f}")
    print("\n| copy | found | other pairs |\n|---|---:|---:|")
    for line in recall:
        print(f"| {line['copy']} | {line['found']:.1%} | {line['other pairs']} |")
    figures: dict[str, object] = {"cost": cost, "recall": recall}
    if options.large:
        figures["search"] = measure_search(1_280_000)
        print(f"\nsearch among 1.28 million hashes: {figures['search']:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return figures


if __name__ == "__main__":
    main()
