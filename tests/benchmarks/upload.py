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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before the folder of tests of the same name

from stores import get_client_environment, run_s3_server

from pipelines.remote.uri import Uri, parse_location

MEGABYTE = 10**6
GOAL = 0.8  # of the client's own rate


@dataclass
class Cost:
    """What an upload took.

    Attributes:
        seconds: Wall-clock time.
        cpu: CPU time of this process, without that of the server.
    """

    seconds: float = 0.0
    cpu: float = 0.0


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
        uploads: dict[str, Callable[[int], Cost]] = {
            "client": lambda number: _upload_with_client(Path(folder), content, bucket.name, number),
            "build": lambda number: _upload_shard(content, f"{bucket.url}/build", number),
            "checkpoint": lambda number: _upload_checkpoint(
                Path(folder), content, f"{bucket.url}/run", number
            ),
        }
        rounds = []
        for number in range(options.rounds + 1):
            first = number % len(uploads)  # every candidate is first, second and last equally often
            names = [*uploads][first:] + [*uploads][:first]
            costs = {name: uploads[name](number) for name in names}
            print({name: f"{options.megabytes / cost.seconds:.0f} MB/s" for name, cost in costs.items()})
            rounds.append(costs)
    _print_ratios(rounds[1:], options.megabytes)  # the first round is a warm-up


def _print_ratios(rounds: list[dict[str, Cost]], megabytes: int) -> None:
    for name in rounds[0]:
        rate = median(costs["client"].seconds / costs[name].seconds for costs in rounds)
        cpu = median(costs[name].cpu for costs in rounds) / megabytes * 1000
        result = f"{rate:.2f} of the client's rate, {cpu:.2f} CPU s per GB"
        print(f"{name}: {result}; goal >= {GOAL}: {'yes' if rate >= GOAL else 'no'}")


@contextmanager
def _measure() -> Iterator[Cost]:
    cost = Cost()
    start = time.perf_counter()
    cpu_start = time.process_time()
    yield cost
    cost.seconds = time.perf_counter() - start
    cost.cpu = time.process_time() - cpu_start


def _upload_with_client(folder: Path, content: bytes, bucket: str, number: int) -> Cost:
    import obstore

    store = obstore.store.S3Store(bucket, config={"endpoint": os.environ["AWS_ENDPOINT_URL"]})
    path = folder / "shard"
    path.write_bytes(content)
    with _measure() as cost:
        obstore.put(store, f"client-{number}", path)
    path.unlink()
    return cost


def _upload_shard(content: bytes, out: str, number: int) -> Cost:
    """Uploads a shard with the call of a build, and its marker."""
    from pipelines.shards.manifest import StoredFile
    from pipelines.shards.output import StoreOutput

    location = _parse_uri(out)
    output = StoreOutput(location, location / ".building" / "0")
    with output.open_scratch() as scratch:
        file = StoredFile(file=f"shard-{number}", bytes=len(content), sha256="")
        (scratch / file.file).write_bytes(content)
        with _measure() as cost:
            output.publish(scratch, [file], f"{file.file}.done", b"marker")
    return cost


def _upload_checkpoint(folder: Path, content: bytes, out: str, number: int) -> Cost:
    """Uploads the state of a checkpoint with the call of the mirror of a run directory."""
    from pipelines.remote.store import upload

    path = folder / "state"
    path.write_bytes(content)
    with _measure() as cost:
        upload(path, _parse_uri(out) / f"state-{number}")
    return cost


def _parse_uri(text: str) -> Uri:
    location = parse_location(text)
    if not isinstance(location, Uri):
        raise TypeError(text)
    return location


if __name__ == "__main__":
    main()
