"""Faults of stores, downloads and the disk of the cache; one function each, as in `fault_cases`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from fault_cases import Outcome
from fault_lab import GLASSBOX, Lab, Training, check_rows, compute_difference, count_steps
from fault_nodes import UNSHARE, fill
from stores import (
    S3Server,
    get_client_environment,
    launch_server,
    reserve_ports,
    run_proxy,
    wait_for_server,
)
from training_samples import noise_shards

from service.runs import Run

SHARD_ROWS = 50
SETTINGS = ("data.window=2", "data.cache=none")
CACHE = "cache"  # folder in that of the lab


class Store:
    """A bucket with the shard set of a lab, on a server that can be killed and started again.

    Args:
        folder: Folder of the server's data, which must not exist.
        shards: Shard set that the bucket holds.

    Attributes:
        server: Address of the server, the same after every start.
        bucket: The bucket.
    """

    def __init__(self, folder: Path, shards: Path) -> None:
        self._folder = folder
        self._ports = reserve_ports(8)
        folder.mkdir()
        self.start()
        self.server = S3Server(self._ports[0], self._ports[1], self._process.pid)
        assert wait_for_server(self._process, self.server), (folder / "log").read_text()[-2000:]
        self.bucket = self.server.create_bucket("faults")
        self.bucket.upload_folder(shards, "set")
        self._size = sum(path.stat().st_size for path in shards.iterdir())

    def start(self) -> None:
        """Starts the server with the data that it left."""
        self._process = launch_server(self._folder, self._ports)

    def kill(self) -> None:
        """Kills the server at once."""
        self._process.kill()
        self._process.wait()

    def get_words(self, share: float = 0.6) -> tuple[str, ...]:
        """Returns arguments of a training from the bucket, whose cache holds a share of the set."""
        return ("--data", f"{self.bucket.url}/set", f"data.cache_gb={share * self._size / 1e9}", *SETTINGS)

    def get_environment(self, lab: Lab, endpoint: str | None = None) -> dict[str, str]:
        """Returns environment variables of such a training."""
        variables = get_client_environment(endpoint or self.server.endpoint)
        return variables | {"GLASSBOX_CACHE": str(lab.folder / CACHE)}


@contextmanager
def open_store(lab: Lab) -> Iterator[tuple[Store, Path]]:
    """Runs a store with a shard set of many shards; gives it and the same set in a folder."""
    shards = lab.folder / "many-shards"
    if not shards.exists():
        noise_shards(shards, rows=1603, held_out=24, shard_rows=SHARD_ROWS)
    number = len(list(lab.folder.glob("store-*")))
    store = Store(lab.folder / f"store-{number}", shards)
    try:
        yield store, shards
    finally:
        store.kill()


def train_local_reference(lab: Lab, shards: Path) -> Run:
    """Returns the finished run of one process from local disk; the first call trains it."""
    run = Run(lab.folder / "local-reference")
    if not run.path.exists():
        lab.train(run.path.name, "--local", "--data", shards, *SETTINGS).wait_for_exit()
    return run


def kill_server(lab: Lab, outage: float = 60.0) -> Outcome:
    """Kills the server in the middle of a training from it whose run it also holds, and starts it again."""
    with open_store(lab) as (store, shards):
        reference = train_local_reference(lab, shards)
        out = f"{store.bucket.url}/runs/first"
        environment = store.get_environment(lab)
        training = lab.train("outage", "--local", *store.get_words(), "--out", out, **environment)
        training.wait_for(lambda: count_mirrored_steps(lab) > 20)
        store.kill()
        time.sleep(outage)
        assert training.process.poll() is None, training.output
        steps = count_mirrored_steps(lab)
        store.start()
        start = time.monotonic()
        training.wait_for(lambda: count_mirrored_steps(lab) > steps)
        seconds = time.monotonic() - start
        training.wait_for_exit()
        store.bucket.download_folder("runs/first", lab.folder / "outage-run")
    run = Run(lab.folder / "outage-run")
    assert run.status()["state"] == "finished"
    result = f"waited for {outage:.0f} s, continued, finished; the run is on the store"
    return Outcome("kill -9 of the server", 1, result, [seconds], compute_difference(run, reference))


def count_mirrored_steps(lab: Lab) -> int:
    """Returns the steps of the run that is trained in the cache folder."""
    runs = list((lab.folder / CACHE).glob("runs/*/first"))
    return count_steps(Run(runs[0])) if runs else 0


def kill_fetcher(lab: Lab) -> Outcome:
    """Kills a process in the middle of a download, then resumes its run."""
    with open_store(lab) as (store, shards), run_proxy(store.server.port) as proxy:
        reference = train_local_reference(lab, shards)
        fault = proxy.inject("stall", key="*/set/train-0*", skip=12, after=2000)
        environment = store.get_environment(lab, proxy.endpoint)
        training = lab.train("fetcher", "--local", *store.get_words(), **environment)
        training.wait_for(lambda: fault not in proxy.faults)
        training.wait_for(lambda: list((lab.folder / CACHE / "shards/fetches").iterdir()))
        training.process.kill()
        training.process.wait()
        left = list((lab.folder / CACHE / "shards/fetches").iterdir())
        resumed = lab.train("fetcher", "--local", "--resume", **environment)
        resumed.wait_for_exit()
        assert left
        assert not list((lab.folder / CACHE / "shards/fetches").iterdir())
    check_rows(resumed.run)
    result = "what it left is removed, finished when resumed"
    difference = compute_difference(resumed.run, reference)
    return Outcome("kill -9 of the fetching process", 1, result, [], difference)


def kill_driver_of_store(lab: Lab) -> Outcome:
    """Kills the driver of two workers that train from the store, then resumes the run.

    With its own Ray, whose workers have the credentials of the driver.
    """
    with open_store(lab) as (store, shards):
        reference = lab.train_reference(2, "--data", shards, *SETTINGS)
        environment = store.get_environment(lab)
        training = lab.train("store-driver", "--workers", "2", *store.get_words(), **environment)
        training.wait_for_steps()
        training.wait_for(lambda: len(list(training.run.checkpoints.glob("epoch-*"))) > 1)
        trainers = training.find_workers()
        training.process.kill()
        start = time.monotonic()
        gone, alive = psutil.wait_procs(trainers, timeout=60)
        seconds = time.monotonic() - start
        assert len(gone) == 2, alive
        resumed = lab.train("store-driver", "--resume", "--workers", "2", **environment)
        resumed.wait_for_exit()
    check_rows(resumed.run)
    result = "the workers exit at once; finished when resumed"
    difference = compute_difference(resumed.run, reference)
    return Outcome("kill -9 of the driver, training from a store", 1, result, [seconds], difference)


def fill_cache_disk(lab: Lab) -> Outcome:
    """Trains with a cache on a disk that is smaller than its budget, fills it up, makes room, and resumes."""
    with open_store(lab) as (store, shards):
        reference = train_local_reference(lab, shards)
        disk = lab.folder / "cache-disk"
        disk.mkdir()
        size = sum(path.stat().st_size for path in shards.iterdir())
        glassbox = f"{sys.executable} -c '{GLASSBOX}' train --local --out {lab.folder}/cache-run"
        options = f"--preset {lab.folder}/small.yaml {' '.join(store.get_words(share=5))}"
        script = f"""
mount -t tmpfs -o size={size * 6 // 10} tmpfs {disk} || exit 77
{glassbox} {options}; echo "exit $?"; rm {disk}/filler-*
{glassbox} --resume; echo "exit $?"
"""
        environment = lab.env | store.get_environment(lab) | {"GLASSBOX_CACHE": str(disk)}
        training = Training(lab.folder / "cache-run", [*UNSHARE, "sh", "-c", script], environment)
        inside = Path(f"/proc/{training.process.pid}/root{disk}")
        training.wait_for_steps(600)  # three epochs, each of which evicts what the disk has no space for
        fillers = 0
        while "exit " not in training.output:
            fill(inside / f"filler-{fillers}")  # takes what is evicted
            fillers += 1
        output = training.wait_for_exit()
    assert "exit 2\n" in output, output
    assert "Expected a cache folder that can be written" in output, output
    assert "No space left on device" in output, output
    assert output.endswith("exit 0\n"), output
    check_rows(training.run)
    result = (
        "evicts what nobody uses; once there is no such file, exit 2 in one sentence; finished when resumed"
    )
    return Outcome("a full disk of the cache", 1, result, [], compute_difference(training.run, reference))
