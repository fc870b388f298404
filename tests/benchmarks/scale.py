"""Measures time and memory of the driver of a shard build at up to 100 million files.

The files are generated names: everything is done that a build does in its driver, except for listing a disk,
running the tasks and writing images. `python tests/benchmarks/scale.py --files 1000000`
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.shards.arrow import RowColumns
from pipelines.shards.manifest import ShardFile
from pipelines.shards.markers import ShardResult
from pipelines.shards.plan import MissingShards, PlannedShard, ShardPlan, plan_shards
from pipelines.shards.split_index import serialize_rows
from pipelines.shards.totals import ShardSetTotals
from pipelines.sources.folder import SCHEMA, FolderSource
from pipelines.sources.holdout import hold_out
from pipelines.sources.layout import CHUNK, arrange_batches
from pipelines.spec import ShardSpec

CLASSES = 1000
FILES_IN_A_ROW = 1000  # of one class, as a walk through folders yields them
IMAGE_BYTES = 110_000
SHARD_ROWS = 872  # 96 MB of such images


def main() -> None:
    """Runs all steps and prints a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000_000, help="number of files (default: 1,000,000)")
    options = parser.parse_args()
    steps = _Steps(options.files)

    arrangement = arrange_batches("generated", _generate(options.files), SCHEMA, {"train": ""})
    source = FolderSource("folder:generated", arrangement.classes, "/", arrangement.splits)
    steps.finish("list, sort, assign classes")
    source.fingerprint()
    steps.finish("fingerprint")
    divided = hold_out(source, 0.05)
    del source, arrangement
    steps.finish("hold out 5 % of each class")
    plan = plan_shards(divided.counts(), ShardSpec(shard_rows=SHARD_ROWS))
    totals = ShardSetTotals(plan, CLASSES)
    for shard in MissingShards(plan, bytearray(len(plan))):
        part = divided.select(shard.source_split, shard.start, shard.stop)  # type: ignore[attr-defined]
        pickle.dumps(part)
        totals.add(shard, _build_result(shard))
    steps.finish(f"parts of {len(plan)} tasks, and their results")
    with tempfile.TemporaryDirectory() as folder:
        totals.build_splits(Path(folder), _build_parts(plan))
        steps.finish("tables of the manifest")


class _Steps:
    """Prints seconds and peak memory after every step.

    Args:
        files: Number of files.
    """

    def __init__(self, files: int) -> None:
        self._files = files
        self._start = time.perf_counter()

    def finish(self, name: str) -> None:
        """Prints the figures of the step that just ended."""
        now = time.perf_counter()
        seconds = now - self._start
        self._start = now
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        figures = {
            "files": self._files,
            "step": name,
            "seconds": round(seconds, 1),
            "us_per_file": round(1e6 * seconds / self._files, 2),
            "peak_gib": round(peak, 2),
        }
        print(json.dumps(figures), flush=True)


def _generate(files: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, files, CHUNK):
        numbers = np.arange(start, min(start + CHUNK, files))
        folders = pc.cast(pa.array(numbers // FILES_IN_A_ROW % CLASSES + CLASSES), pa.string())
        names = pc.cast(pa.array(numbers + 10**9), pa.string())
        paths = pc.binary_join_element_wise("class-", folders, "/photo-", names, ".jpg", "")
        sizes = pa.array(np.full(len(numbers), IMAGE_BYTES))
        yield pa.record_batch([pc.cast(paths, pa.large_binary()), sizes], schema=SCHEMA)


def _build_result(shard: PlannedShard) -> ShardResult:
    counts = np.bincount(np.arange(shard.candidates) % CLASSES, minlength=CLASSES)
    size = shard.candidates * IMAGE_BYTES
    file = ShardFile(file=shard.file, rows=shard.candidates, bytes=size, sha256="0" * 64)
    return ShardResult(
        shard=file, class_counts=tuple(counts.tolist()), pixel_sums=((1, 1, 1),) * 3, rejected=0
    )


def _build_parts(plan: ShardPlan) -> Iterator[tuple[PlannedShard, ShardFile, bytes]]:
    for shard in plan:
        rows = shard.candidates
        columns = RowColumns(
            labels=np.zeros(rows, np.int32),
            starts=np.arange(rows, dtype=np.int64) * IMAGE_BYTES,
            sizes=np.full(rows, IMAGE_BYTES, np.int32),
            checksums=np.zeros(rows, np.uint64),
            shapes=np.zeros((rows, 3), np.int32),
        )
        yield shard, _build_result(shard).shard, serialize_rows(columns)


if __name__ == "__main__":
    main()
