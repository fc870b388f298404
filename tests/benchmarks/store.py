"""Measures training input from an object store, against local disk and other libraries on the same server.

`python tests/benchmarks/store.py --help`; starts SeaweedFS on this machine. The other libraries need
`--peers-python`, a Python with mosaicml-streaming, webdataset, boto3 and PyTorch.
"""

from __future__ import annotations

import os
import random
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before the folder of tests of the same name

import runner
import simplejpeg
from harness import CORES, Candidate
from results import Benchmark, Goal
from shard_samples import write_shards
from stores import Bucket, get_client_environment, run_s3_server

from pipelines.records import Record

BATCH = 64
SIZE = 150
WINDOW = 4
TITLE = f"Input from an object store (SeaweedFS on this machine), batches of {BATCH}"

CLIENT = "raw: obstore fetches all shards"
LOCAL_ROWS = "ours, local disk: encoded rows"
STEADY_ROWS = "ours, store: encoded rows"
STREAMED_ROWS = "ours, store, cache of half the set: encoded rows"
COLD_ROWS = "ours, store, empty cache: encoded rows"
LOCAL = "ours, local disk: decoded"
STEADY = "ours, store: decoded"
COLD_LOCAL = "ours, local disk, first epoch: decoded"
COLD = "ours, store, first epoch, empty cache: decoded"
STREAMING = "mosaicml-streaming, warm cache (py1e): encoded rows"
STREAMING_COLD = "mosaicml-streaming, empty cache (py1e): encoded rows"
WEBDATASET = "webdataset, no cache (buffer of 1,000): encoded rows"
RAY = "Ray Data read_images, no cache (files): decoded"


def list_candidates(local: Path, bucket: Bucket, scratch: Path, peers_python: str) -> list[Candidate]:
    """Returns all candidates in the order of the table."""
    remote = f"{bucket.url}/set"
    half = sum(path.stat().st_size for path in local.iterdir()) / 2 / 1e9
    shared = {"batch": BATCH, "window": WINDOW}
    decoded = shared | {"size": SIZE}

    def rows(name: str, location: str | Path, **settings: Any) -> Candidate:
        cache = str(scratch / "caches" / name.replace(" ", "-").replace(",", ""))
        arguments = {"location": str(location), "cache": cache, "cache_gb": None} | shared | settings
        return Candidate(name, "store_ours:rows", arguments)

    def batches(name: str, location: str | Path, **settings: Any) -> Candidate:
        cache = str(scratch / "caches" / name.replace(" ", "-").replace(",", ""))
        arguments = {"location": str(location), "cache": cache} | decoded | settings
        return Candidate(name, "store_ours:batches", arguments)

    def peer(name: str, function: str, python: str = sys.executable, **settings: Any) -> Candidate:
        arguments = {"bucket": bucket.name, "scratch": str(scratch), "batch": BATCH} | settings
        return Candidate(name, f"store_peers:{function}", arguments, python=python)

    return [
        Candidate(CLIENT, "store_ours:client", {"bucket": bucket.name, "prefix": "set"}),
        rows(LOCAL_ROWS, local),
        rows(STEADY_ROWS, remote),
        rows(STREAMED_ROWS, remote, cache_gb=half),
        rows(COLD_ROWS, remote, is_cold=True),
        batches(LOCAL, local),
        batches(STEADY, remote),
        batches(COLD_LOCAL, local, is_cold=True),
        batches(COLD, remote, is_cold=True),
        peer(STREAMING, "streaming", peers_python, workers=CORES, is_cold=False),
        peer(STREAMING_COLD, "streaming", peers_python, workers=CORES, is_cold=True),
        peer(WEBDATASET, "webdataset", peers_python, workers=CORES),
        peer(RAY, "ray_images", size=SIZE),
    ]


GOALS = (
    Goal(STEADY_ROWS, STEADY_ROWS, LOCAL_ROWS, 0.95, ">= 0.95 of local disk"),
    Goal(STEADY, STEADY, LOCAL, 0.95, ">= 0.95 of local disk"),
    Goal(COLD, COLD, COLD_LOCAL, 0.8, ">= 0.8 of local disk"),
    Goal(STREAMING, STEADY_ROWS, STREAMING, 1.0, "ours, warm >= 1 x this"),
    Goal(STREAMING_COLD, COLD_ROWS, STREAMING_COLD, 1.0, "ours, empty >= 1 x this"),
    Goal(WEBDATASET, COLD_ROWS, WEBDATASET, 1.0, "ours, empty >= 1 x this"),
    Goal(RAY, COLD, RAY, 1.0, "ours, empty >= 1 x this"),
)


@contextmanager
def set_environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets variables for the processes that are started in the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def list_photos(photos: Path, copies: int) -> list[Path]:
    """Returns the photos in a random order, each several times."""
    paths = sorted(photos.glob("*/*")) * copies
    random.Random(0).shuffle(paths)
    return paths


def count_shard_images(paths: list[Path], shard_mb: float) -> int:
    """Returns how many of the photos make up a shard."""
    return max(1, int(shard_mb * 1e6 * len(paths) / sum(path.stat().st_size for path in paths)))


def write_set(paths: list[Path], folder: Path, shard_mb: float) -> None:
    """Writes the photos as a shard set, without the builder, which needs Ray."""
    classes = sorted({path.parent.name for path in paths})
    records = []
    for number, path in enumerate(paths):
        image = path.read_bytes()
        height, width, colours, _ = simplejpeg.decode_jpeg_header(image)
        channels = 1 if colours == "Gray" else 3
        label = classes.index(path.parent.name)
        records.append(Record(image, label, f"{number:08d}", (height, width, channels)))
    write_shards(folder, classes, {"train": records}, shard_rows=count_shard_images(paths, shard_mb))


def write_tars(paths: list[Path], folder: Path, bucket: Bucket, shard_mb: float) -> None:
    """Uploads the photos as tar files, as webdataset reads them."""
    classes = sorted({path.parent.name for path in paths})
    size = count_shard_images(paths, shard_mb)
    for start in range(0, len(paths), size):
        name = f"{start // size:05d}.tar"
        with tarfile.open(folder / name, "w") as archive:
            for number, path in enumerate(paths[start : start + size], start):
                archive.add(path.resolve(), f"{number:08d}.jpg")
                label = folder / "label"
                label.write_text(str(classes.index(path.parent.name)))
                archive.add(label, f"{number:08d}.cls")
        bucket.put(f"tars/{name}", (folder / name).read_bytes())


def print_cpu_per_gigabyte(figures: dict[str, Any], megabytes: float) -> None:
    """Prints what the table lacks: CPU seconds of every candidate per 10**9 bytes of photos."""
    print(f"\nCPU seconds per GB ({megabytes:.0f} MB of photos per round):")
    for row in figures["rows"]:
        if "cpu_ms_per_image" in row:
            seconds = row["cpu_ms_per_image"] * figures["images"] / megabytes
            print(f"  {seconds:7.2f}  {row['name']}")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark and returns its figures."""
    parser = runner.build_parser(__doc__ or "")
    parser.add_argument("--peers-python", metavar="PATH", default=sys.executable, help="see above")
    parser.add_argument("--copies", type=int, default=8, help="times that each photo is in the sets")
    parser.add_argument("--shard-mb", type=float, default=16, help="size of the shards of all libraries")
    options = parser.parse_args(arguments)
    size = 0.0

    def build_for(bucket: Bucket) -> Callable[[Path, Path], Benchmark]:
        def build(photos: Path, scratch: Path) -> Benchmark:
            nonlocal size
            paths = list_photos(photos, options.copies)
            size = sum(path.stat().st_size for path in paths) / 1e6
            shards = scratch / "shards"
            write_set(paths, shards, options.shard_mb)
            bucket.upload_folder(shards, "set")
            write_tars(paths, scratch, bucket, options.shard_mb)
            if not options.only or any(word in RAY for word in options.only):
                for number, path in enumerate(paths):
                    bucket.put(f"photos/{path.parent.name}/{number}.jpg", path.read_bytes())
            candidates = list_candidates(shards, bucket, scratch, options.peers_python)
            for candidate in candidates:
                if candidate.function == "store_peers:streaming":
                    candidate.settings["copies"] = options.copies
                    candidate.settings["shard_mb"] = options.shard_mb
            return Benchmark(candidates, GOALS, (CLIENT,), images=len(paths))

        return build

    with (
        tempfile.TemporaryDirectory(prefix="glassbox-store-", dir=options.scratch) as folder,
        run_s3_server(Path(folder)) as server,
    ):
        variables = get_client_environment(server.endpoint) | {"S3_ENDPOINT_URL": server.endpoint}
        with set_environment(variables):
            figures = runner.run(TITLE, options, build_for(server.create_bucket("bench")))
            print_cpu_per_gigabyte(figures, size)
            return figures


if __name__ == "__main__":
    main()
