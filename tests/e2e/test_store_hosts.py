"""Trainings through Ray whose driver and workers share nothing but a store."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_lab import Lab, Training, compute_difference, find_descendants, kill_tree, read_title
from stores import Bucket

from pipelines.remote.uri import Uri, parse_location
from service.mirror.fetch import fetch_run

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
LEASE = {"GLASSBOX_LEASE_SECONDS": "10"}


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A cluster whose head has room for one worker; nodes and drivers have cache folders of their own."""
    with tempfile.TemporaryDirectory(prefix="gb", ignore_cleanup_errors=True) as path:
        lab = Lab(Path(path), 1)
        lab.env |= LEASE | {"GLASSBOX_CACHE": f"{path}/head"}
        try:
            lab.start()
            yield lab
        finally:
            lab.close()


def add_host(lab: Lab, name: str) -> subprocess.Popen[bytes]:
    """Adds a node with a cache folder of its own."""
    before = lab.env["GLASSBOX_CACHE"]
    lab.env["GLASSBOX_CACHE"] = f"{lab.folder}/{name}"
    try:
        return lab.add_node(1)
    finally:
        lab.env["GLASSBOX_CACHE"] = before


def train(lab: Lab, *words: str, driver: str = "driver") -> Training:
    """Starts `glassbox train` for a run on the store."""
    return lab.train("first", *words, GLASSBOX_CACHE=f"{lab.folder}/{driver}")


def count_epochs(bucket: Bucket) -> int:
    try:
        return bucket.get("runs/first/metrics.jsonl").count(b"\n")
    except FileNotFoundError:
        return 0


def find_workers(node: subprocess.Popen[bytes]) -> list[int]:
    workers = find_descendants(node.pid)
    return [worker.pid for worker in workers if read_title(worker).startswith("ray::RayTrainWorker")]


def test_a_lost_host_is_replaced_by_another_from_the_store_alone(
    lab: Lab, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "reader"))
    host = add_host(lab, "second")
    reference = lab.train_reference(2)
    out = f"{bucket.url}/runs/first"
    training = train(lab, "--workers", "2", "--cpus-per-worker", "1", "--out", out)
    training.wait_for(lambda: count_epochs(bucket) >= 2)
    assert len(find_workers(host)) == 1
    kill_tree(host.pid)
    training.wait_for(lambda: "a worker was lost" in training.output or "waiting for room" in training.output)
    add_host(lab, "third")
    output = training.wait_for_exit()
    assert "a worker was lost" in output
    caches = {path.parents[2].name for path in lab.folder.glob("*/runs/*/first")}
    assert caches == {"driver", "head", "second", "third"}
    uri = parse_location(out)
    assert isinstance(uri, Uri)
    run = fetch_run(uri, ("metrics", "status", "newest"))
    assert run.status()["state"] == "finished"
    assert compute_difference(run, reference) == 0
    assert f"finished: {out}" in output


def test_a_stopped_run_is_on_the_store_and_continues_elsewhere(
    lab: Lab, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GLASSBOX_CACHE", str(tmp_path / "reader"))
    out = f"{bucket.url}/runs/first"
    training = train(lab, "--workers", "1", "--out", out, "epochs=5000")
    training.wait_for(lambda: count_epochs(bucket) >= 1)
    training.process.terminate()
    output = training.wait_for_exit(143)
    assert f"saved; continue with: glassbox train --resume --out {out}" in output
    epochs = count_epochs(bucket) + 3
    config = bucket.get("runs/first/config.yaml")
    bucket.put("runs/first/config.yaml", config.replace(b"epochs: 5000", b"epochs: %d" % epochs))
    train(lab, "--resume", "--out", out, driver="another").wait_for_exit()
    uri = parse_location(out)
    assert isinstance(uri, Uri)
    run = fetch_run(uri, ("metrics", "status", "newest"))
    assert run.status()["state"] == "finished"
    assert [line["epoch"] for line in run.metrics()] == list(range(1, epochs + 1))
    assert compute_difference(run, lab.train_reference(1, f"epochs={epochs}")) == 0
