"""Measures the CPU time of writing one shard, in turns with the writers of other libraries, without Ray.

`PEERS_PYTHON tests/benchmarks/shard_tasks.py FOLDER`: everything runs in this process, so that a load of the
machine affects all alike. PEERS_PYTHON has webdataset, mosaicml-streaming, simplejpeg, pyarrow, filelock,
pydantic and xxhash. FOLDER has one folder per class.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from shards_peers import write_mds, write_tars

from pipelines.shards.arrow import ImageBuffer
from pipelines.shards.output import FolderOutput
from pipelines.shards.plan import PlannedShard, plan_shards
from pipelines.shards.task import build_shard
from pipelines.sources.folder import FolderSource, open_folder
from pipelines.spec import ShardSpec

OURS = "glassbox"


def main() -> None:
    """Writes shards of the same photos in turns and prints the CPU time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="photos, one folder per class")
    parser.add_argument("--check", choices=("sums", "decode", "header"), default="sums", help="see shards.py")
    parser.add_argument("--images", type=int, default=500, help="photos of a shard (default: 500)")
    parser.add_argument("--rounds", type=int, default=12, help="shards per library (default: 12)")
    options = parser.parse_args()

    source = open_folder(str(options.folder))
    paths = sorted(options.folder.glob("*/*"))
    labels = {name: index for index, name in enumerate(source.classes)}
    # Our builder adds up pixels whenever it decodes.
    check = "header" if options.check == "header" else "decode"
    spec = ShardSpec(check=check, shard_rows=options.images)
    shards = list(plan_shards(source.counts(), spec))
    write_ours = partial(_write_ours, source=source, spec=spec, images=ImageBuffer())
    peers = {"webdataset": write_tars, "mosaicml-streaming": write_mds}
    costs: dict[str, list[float]] = {name: [] for name in (OURS, *peers)}
    for number in range(options.rounds + 1):
        shard = shards[number % (len(paths) // options.images)]
        part = paths[shard.start : shard.stop]
        for path in part:  # into the page cache
            path.read_bytes()
        writers: dict[str, Callable[[Path], None]] = {OURS: partial(write_ours, shard=shard)}
        for name, write in peers.items():
            writers[name] = partial(write, paths=part, labels=labels, check=options.check)
        for name in writers if number % 2 else reversed(writers):
            cost = _measure(writers[name]) / len(part) * 1000
            if number:  # the first round is a warm-up
                costs[name].append(cost)
    for name, values in costs.items():
        ratio = median(ours / other for ours, other in zip(costs[OURS], values, strict=True))
        print(f"{name}: {median(values):.2f} CPU s per 1,000 photos; glassbox takes {ratio:.2f} of this")


def _write_ours(
    out: Path, shard: PlannedShard, source: FolderSource, spec: ShardSpec, images: ImageBuffer
) -> None:
    work = out / ".building"
    work.mkdir()
    part = source.select("train", shard.start, shard.stop)
    build_shard(part, shard, spec, FolderOutput(out, work), images)


def _measure(write: Callable[[Path], None]) -> float:
    """Returns the CPU seconds of this process for writing to a folder and flushing it to disk."""
    with tempfile.TemporaryDirectory(prefix="glassbox-benchmark-") as folder:
        start = time.process_time()
        write(Path(folder))
        for path in Path(folder).rglob("*"):
            if path.is_file():
                _flush(path)
        return time.process_time() - start


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


if __name__ == "__main__":
    main()
