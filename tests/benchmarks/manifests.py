"""Measures how long it takes to write, open and read the index of a shard set with very many shards.

The shards themselves are not written: opening a set and reading labels must not need them. Every step runs in
a process of its own. Example: `python tests/benchmarks/manifests.py --shards 1000000 --rows 16`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
CLASSES = 1000
IMAGE_BYTES = 110_000
READ_ROWS = 256  # a global batch


def write_set(directory: Path, shards: int, rows: int) -> None:
    """Writes a manifest and its sidecars as the builder does, one shard after the other."""
    from pipelines.shards.arrow import RowColumns
    from pipelines.shards.manifest import VERSION, Manifest, ShardFile, SplitManifest
    from pipelines.shards.split_index import serialize_rows, write_split

    def build_shards() -> Iterator[tuple[ShardFile, bytes]]:
        shapes = np.full((rows, 3), (375, 500, 3), np.int32)
        sizes = np.full(rows, IMAGE_BYTES, np.int32)
        starts = np.arange(rows, dtype=np.int64) * IMAGE_BYTES
        for number in range(shards):
            first = number * rows
            labels = np.arange(first, first + rows, dtype=np.int64) % CLASSES
            checksums = np.arange(first, first + rows, dtype=np.uint64)
            columns = RowColumns(labels.astype(np.int32), starts, sizes, checksums, shapes)
            shard = ShardFile(
                file=f"train-{number:05d}-of-{shards:05d}.arrow",
                bytes=rows * IMAGE_BYTES + 1000,
                sha256=f"{number:064x}",
                rows=rows,
            )
            yield shard, serialize_rows(columns)

    sidecars = write_split(directory, "train", "arrow", build_shards())
    counts = np.bincount(np.arange(CLASSES), minlength=CLASSES) * (shards * rows // CLASSES)
    split = SplitManifest(**dict(sidecars), class_counts=tuple(counts.tolist()), mean=None, std=None)
    Manifest(
        version=VERSION,
        format="arrow",
        encoding="as-found",
        store_size=None,
        source="generated",
        fingerprint="0",
        classes=tuple(f"class {label}" for label in range(CLASSES)),
        splits={"train": split},
        rejected=0,
    ).save(directory)


def open_set(directory: Path) -> dict[str, float]:
    """Opens the set and reads the labels of the first batch of a random order."""
    from pipelines.input.reader import ShardReader

    before = read_peak_memory()
    start = time.perf_counter()
    reader = ShardReader(directory, "train")
    opened = time.perf_counter()
    opened_memory = read_peak_memory()
    rows = np.random.default_rng(0).integers(0, reader.rows, READ_ROWS)
    labels = reader.read_labels(rows)
    if labels.tolist() != (rows % CLASSES).tolist():
        raise ValueError("wrong labels")
    end = time.perf_counter()
    return {
        "open_s": opened - start,
        "open_mb": opened_memory,
        "imports_mb": before,
        "batch_s": end - opened,
        "batch_mb": read_peak_memory(),
    }


def read_peak_memory() -> float:
    """Returns the largest resident memory of this process so far, in units of 10**6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def run_step(step: str, directory: Path, shards: int, rows: int) -> dict[str, float]:
    """Runs one step in a process of its own, and returns its figures."""
    command = [sys.executable, __file__, "--step", step, "--directory", str(directory)]
    command += ["--shards", str(shards), "--rows", str(rows)]
    start = time.perf_counter()
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, float] = json.loads(output)
    return figures | {"process_s": time.perf_counter() - start}


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Runs the benchmark and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=16, help="rows per shard")
    parser.add_argument("--step", choices=["write", "open"], help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT))
    if options.step == "write":
        start = time.perf_counter()
        write_set(options.directory, options.shards, options.rows)
        print(json.dumps({"write_s": time.perf_counter() - start, "write_mb": read_peak_memory()}))
        return {}
    if options.step == "open":
        print(json.dumps(open_set(options.directory)))
        return {}

    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        results = {
            step: run_step(step, directory, options.shards, options.rows) for step in ("write", "open")
        }
        results["files"] = {path.name: path.stat().st_size / 1e6 for path in sorted(directory.iterdir())}
    for name, figures in results.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in figures.items()))
    return results


if __name__ == "__main__":
    main()
