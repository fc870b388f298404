"""Measures the time to the first batch of a shard set in a store, from an empty cache, by number of rows.

The manifest and its sidecars are complete; of the shards, which are all alike, only those of the first
windows are uploaded. `python tests/benchmarks/first_batch.py --rows 10000 100000000`; the latter needs 8 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before the folder of tests of the same name

from stores import Bucket, get_client_environment, run_s3_server

SHARD_ROWS = 1000
IMAGE_BYTES = 1000
BATCH = 256
WINDOW = 4
UPLOADED_WINDOWS = 4
SEED = 0
GOAL_SECONDS = 5.0


def upload_set(folder: Path, bucket: Bucket, rows: int) -> None:
    """Writes the set as the builder does, except for the shards that the first batches do not need."""
    from pipelines.input.order import EpochOrder, OrderSpec
    from pipelines.records import Record
    from pipelines.remote.store import upload
    from pipelines.remote.uri import Uri
    from pipelines.shards.formats import write_shard
    from pipelines.shards.manifest import VERSION, Manifest, ShardFile, SplitManifest
    from pipelines.shards.split_index import index_shard, write_split

    draw = np.random.default_rng(0)
    records = [Record(draw.bytes(IMAGE_BYTES), row % 2, f"{row}", (10, 10, 3)) for row in range(SHARD_ROWS)]
    folder.mkdir()
    template = write_shard(folder, "template.arrow", records)
    part = index_shard(folder, template)
    count = rows // SHARD_ROWS
    names = [f"train-{number:05d}-of-{count:05d}.arrow" for number in range(count)]

    def list_shards() -> Iterator[tuple[ShardFile, bytes]]:
        for name in names:
            yield template.model_copy(update={"file": name}), part

    sidecars = write_split(folder, "train", "arrow", list_shards())
    split = SplitManifest(**dict(sidecars), class_counts=(rows // 2, rows // 2), mean=None, std=None)
    Manifest(
        version=VERSION,
        format="arrow",
        encoding="as-found",
        store_size=None,
        source="generated",
        fingerprint="0",
        classes=("a", "b"),
        splits={"train": split},
        rejected=0,
    ).save(folder)

    root = Uri("s3", bucket.name, f"set-{rows}")
    for path in folder.iterdir():
        if path.name != template.file:
            upload(path, root / path.name)
    order = OrderSpec((np.full(count, SHARD_ROWS),), BATCH, SEED, WINDOW)
    windows = EpochOrder(order, 0).iterate_windows()
    for _, (_, shards) in zip(range(UPLOADED_WINDOWS), windows, strict=False):
        for number in shards:
            upload(folder / template.file, root / names[number])


def read_first_batch(location: str) -> dict[str, float]:
    """Opens the set and reads the images of the first step, as a training does."""
    from pipelines.input.order import EpochOrder, OrderSpec
    from pipelines.input.passes import Pass, PassReader
    from pipelines.input.reader import ShardReader

    start = time.perf_counter()
    cpu_start = time.process_time()
    reader = ShardReader(location, "train")
    order = OrderSpec((reader.shard_rows,), BATCH, SEED, WINDOW)
    epoch = EpochOrder(order, 0)
    current = PassReader(reader, Pass(order, 0, 1, 0, epoch.steps))
    images = current.reader.read_images(epoch.find_rows(range(1))[0])
    seconds = time.perf_counter() - start
    cpu_seconds = time.process_time() - cpu_start
    if len(images) != BATCH:
        raise ValueError(f"{len(images)} images")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    figures = {"seconds": seconds, "cpu_seconds": cpu_seconds, "megabytes": memory}
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()
    os._exit(0)  # what is fetched ahead has not been uploaded


def main(arguments: list[str] | None = None) -> list[dict[str, float]]:
    """Runs the benchmark and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="directory for everything")
    options = parser.parse_args(arguments)
    if options.read:
        read_first_batch(options.read)
    figures = []
    with (
        tempfile.TemporaryDirectory(dir=options.scratch) as name,
        run_s3_server(Path(name) / "server") as server,
    ):
        os.environ.update(get_client_environment(server.endpoint))
        bucket = server.create_bucket("first-batch")
        for rows in options.rows:
            upload_set(Path(name) / f"set-{rows}", bucket, rows)
            for number in range(options.rounds):
                environment = os.environ | {"GLASSBOX_CACHE": f"{name}/cache-{rows}-{number}"}
                command = [sys.executable, __file__, "--read", f"{bucket.url}/set-{rows}"]
                output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                last = {"rows": rows} | json.loads(output.stdout)
                figures.append(last)
                cpu = f"{last['cpu_seconds']:.2f} s of CPU"
                memory = f"{last['megabytes']:.0f} MB"
                print(f"{rows:>11,} rows: {last['seconds']:.2f} s, {cpu}, {memory}", flush=True)
    slowest = max(entry["seconds"] for entry in figures)
    print(
        f"slowest: {slowest:.2f} s, goal < {GOAL_SECONDS:.0f} s: {'yes' if slowest < GOAL_SECONDS else 'no'}"
    )
    return figures


if __name__ == "__main__":
    main()
