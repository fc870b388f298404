"""Measures how fast shards and checkpoints are uploaded to an S3 server, compared with the client alone.

`python tests/benchmarks/upload.py`: starts SeaweedFS on this machine, and uploads the same bytes in turns.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before the folder of tests of the same name

from stores import get_client_environment, run_s3_server

MEGABYTE = 10**6
GOAL = 0.8  # of the client's own rate


def main() -> None:
    """Uploads shards in turns and prints the rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=96, help="size of a shard (default: 96)")
    parser.add_argument("--rounds", type=int, default=5, help="shards per candidate (default: 5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, run_s3_server(Path(folder)) as server:
        os.environ.update(get_client_environment(server.endpoint))
        bucket = server.create_bucket("upload")
        content = secrets.token_bytes(options.megabytes * MEGABYTE)
        ratios: dict[str, list[float]] = {"build": [], "checkpoint": []}
        for number in range(options.rounds + 1):
            uploads = {
                "client": lambda number=number: _time_client(Path(folder), content, bucket.name, number),
                "build": lambda number=number: _time_build(content, f"{bucket.url}/build", number),
                "checkpoint": lambda number=number: _time_checkpoint(
                    Path(folder), content, f"{bucket.url}/run", number
                ),
            }
            names = list(uploads) if number % 2 else list(reversed(uploads))
            seconds = {name: uploads[name]() for name in names}
            if number:  # the first round is a warm-up
                for name, values in ratios.items():
                    values.append(seconds["client"] / seconds[name])
                rates = {name: f"{options.megabytes / value:.0f} MB/s" for name, value in seconds.items()}
                print(rates, flush=True)
    for name, values in ratios.items():
        ratio = median(values)
        print(f"{name} / client: {ratio:.2f}, goal >= {GOAL}: {'yes' if ratio >= GOAL else 'no'}")


def _time_client(folder: Path, content: bytes, bucket: str, number: int) -> float:
    import obstore

    store = obstore.store.S3Store(bucket, config={"endpoint": os.environ["AWS_ENDPOINT_URL"]})
    path = folder / "shard"
    path.write_bytes(content)
    start = time.perf_counter()
    obstore.put(store, f"client-{number}", path)
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def _time_build(content: bytes, out: str, number: int) -> float:
    from pipelines.remote.uri import Uri, parse_location
    from pipelines.shards.manifest import StoredFile
    from pipelines.shards.output import StoreOutput

    location = parse_location(out)
    if not isinstance(location, Uri):
        raise TypeError(out)
    output = StoreOutput(location, location / ".building" / "0")
    with output.open_scratch() as scratch:
        file = StoredFile(file=f"shard-{number}", bytes=len(content), sha256="")
        (scratch / file.file).write_bytes(content)
        start = time.perf_counter()
        output.publish(scratch, [file], f"{file.file}.done", b"marker")
        return time.perf_counter() - start


def _time_checkpoint(folder: Path, content: bytes, out: str, number: int) -> float:
    """Uploads the state of a checkpoint with the call of the mirror of a run directory."""
    from pipelines.remote.store import upload
    from pipelines.remote.uri import Uri, parse_location

    location = parse_location(out)
    if not isinstance(location, Uri):
        raise TypeError(out)
    path = folder / "state"
    path.write_bytes(content)
    start = time.perf_counter()
    upload(path, location / f"state-{number}")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
