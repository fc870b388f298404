"""Runs on a store: trained, killed, continued elsewhere, and cut off from the store."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from mirror_hosts import Host, read_until
from stores import Bucket, FaultProxy, wait_until

from pipelines.remote.uri import Uri, parse_location
from service.checkpoint import Position, find_epoch, newest_checkpoint, save_checkpoint
from service.checkpoint_record import list_checkpoints
from service.mirror.fetch import fetch_run, find_remote_runs, pull_run
from service.mirror.folder import Record
from service.mirror.lease import RunLease
from service.mirror.mirror import Mirror
from service.runs import Run

pytestmark = pytest.mark.e2e

DATA = "digest"


def pull(bucket: Bucket, folder: Path) -> Run:
    """Fetches the run as another host would, and checks that it is whole."""
    uri = parse_location(f"{bucket.url}/runs/first")
    assert isinstance(uri, Uri)
    run = Run(folder)
    assert pull_run(uri, run, Record()) == []
    checkpoint = newest_checkpoint(run.checkpoints, DATA)
    epochs = checkpoint.position.epoch if checkpoint else 0
    assert len(run.metrics()) <= epochs
    return run


def start_and_upload(
    host: Host, bucket: Bucket, mode: str = "new", seconds: float = 0.05
) -> subprocess.Popen[str]:
    """Starts a training of many epochs, and returns when a new checkpoint is on the store."""
    before = set(bucket.list_keys("runs/first/checkpoints"))
    process = host.start(mode, epochs=300, seconds=seconds)
    read_until(process, "epoch ")
    wait_until(
        lambda: any(key.endswith(".json") for key in {*bucket.list_keys("runs/first/checkpoints")} - before)
    )
    return process


def read_weights(run: Run) -> np.ndarray:
    with np.load(list_checkpoints(run.checkpoints)[-1] / "state.npz") as state:
        return state["0000"]


def test_a_run_continues_on_another_host_from_the_store_alone(
    hosts: list[Host], bucket: Bucket, tmp_path: Path
) -> None:
    first, second, third = hosts
    first.train("new", epochs=2)
    assert "from epoch-0002" in second.train(epochs=5)
    assert "from epoch-0005" in first.train(epochs=6)  # whose folder is behind the store
    continued = pull(bucket, tmp_path / "continued")

    third.uri = f"{bucket.url}/runs/whole"
    third.train("new", epochs=6)
    whole = fetch_run(parse_location(third.uri), ("newest",))
    np.testing.assert_array_equal(read_weights(continued), read_weights(whole))
    names = {key.split("/")[-2] for key in bucket.list_keys("runs/first/checkpoints")}
    assert names == {key.split("/")[-2] for key in bucket.list_keys("runs/whole/checkpoints")}


@pytest.mark.slow
def test_a_killed_run_is_whole_on_the_store_and_ends_with_the_same_weights(
    hosts: list[Host], bucket: Bucket, tmp_path: Path
) -> None:
    host, other, reference = hosts
    draw = random.Random(0)
    for number in range(8):
        process = start_and_upload(host, bucket, "resume" if number else "new", seconds=0.1)
        time.sleep(draw.uniform(0.0, 1.0))
        process.kill()
        process.wait()
        pull(bucket, tmp_path / f"copy-{number}")
    continued = pull(bucket, tmp_path / "last")
    epochs = len(continued.metrics()) + 2
    other.train(epochs=epochs)

    reference.uri = f"{bucket.url}/runs/whole"
    reference.train("new", epochs=epochs, seconds=0.0)
    whole = fetch_run(parse_location(reference.uri), ("newest",))
    np.testing.assert_array_equal(read_weights(pull(bucket, tmp_path / "end")), read_weights(whole))


def test_of_two_processes_that_resume_a_killed_run_one_is_refused(hosts: list[Host], bucket: Bucket) -> None:
    dead, *others = hosts
    start_and_upload(dead, bucket).kill()
    processes = [host.start(epochs=300, seconds=0.1) for host in others]
    wait_until(lambda: any(process.poll() is not None for process in processes))
    refused, trained = sorted(processes, key=lambda process: process.poll() is None)
    output, _ = refused.communicate()
    assert refused.returncode == 2
    assert output.count("Expected a run that nobody is training. Received: out=s3://") == 1
    read_until(trained, "epoch")
    assert trained.poll() is None


def test_a_suspended_process_that_lost_its_lease_stops_without_writing(
    hosts: list[Host], bucket: Bucket
) -> None:
    suspended, other, _ = hosts
    process = start_and_upload(suspended, bucket)
    wait_until(lambda: "runs/first/metrics.jsonl" in bucket.list_keys("runs/first/"))
    process.send_signal(signal.SIGSTOP)
    epochs = bucket.get("runs/first/metrics.jsonl").count(b"\n")
    other.train(epochs=epochs + 2)
    keys = bucket.list_keys("runs/first/")
    contents = {key: bucket.get(key) for key in keys}
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "Expected a run that no other process continues" in output
    assert {key: bucket.get(key) for key in bucket.list_keys("runs/first/")} == contents


def test_what_a_process_without_the_lease_was_writing_is_removed(bucket: Bucket, tmp_path: Path) -> None:
    uri = Uri("s3", bucket.name, "runs/first")
    run = Run(tmp_path / "run")
    run.create({"epochs": 3})
    position = Position(DATA, ({"epoch": 1, "accuracy": 0.5},))
    config = {"keep_checkpoints": 1}
    save_checkpoint(run.checkpoints, {"model": [np.zeros(2)]}, position, 1, config=config)
    lease = RunLease(uri)
    lease.acquire(lambda held: False)
    mirror = Mirror(run, uri, lease, Record())
    mirror.start()
    wait_until(lambda: "runs/first/checkpoints/epoch-0001/checkpoint.json" in bucket.list_keys("runs/first"))
    kept = bucket.list_keys("runs/first/checkpoints")
    for name in ("state.npz", "checkpoint.json"):
        bucket.put(f"runs/first/checkpoints/epoch-0002/{name}", b"of a process that was suspended")
    assert mirror.finish() is None
    assert bucket.list_keys("runs/first/checkpoints") == kept
    lease.release()


def test_a_live_holder_on_the_same_host_is_respected_at_once(hosts: list[Host]) -> None:
    host = hosts[0]
    read_until(host.start("new", epochs=300, seconds=0.1), "epoch")
    second = host.start(epochs=300)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 2
    assert "nobody is training" in output


def test_an_outage_stops_nothing_and_is_caught_up(
    hosts: list[Host], bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    process = hosts[0].start("new", epochs=30, seconds=0.02)
    read_until(process, "epoch 3")
    with proxy.outage():
        read_until(process, "epoch 20")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert len(pull(bucket, tmp_path / "copy").metrics()) == 30


def test_objects_are_uploaded_once_and_after_what_they_depend_on(
    hosts: list[Host], proxy: FaultProxy
) -> None:
    hosts[0].train("new", epochs=3)
    hosts[0].train(epochs=3)
    puts = [request.key.partition("runs/first/")[2] for request in proxy.requests if request.method == "PUT"]
    for name in {name for name in puts if name.startswith("checkpoints/") or name == "config.yaml"}:
        assert puts.count(name) == 1
        if name.endswith("checkpoint.json"):
            assert puts.index(name.replace("checkpoint.json", "state.npz")) < puts.index(name)
    last_line = len(puts) - 1 - puts[::-1].index("metrics.jsonl")
    assert puts.index("checkpoints/epoch-0003/checkpoint.json") < last_line
    assert puts.index("config.yaml") < min(puts.index(name) for name in puts if "checkpoints" in name)


def test_a_run_that_could_not_be_uploaded_is_saved_and_uploaded_by_resume(
    hosts: list[Host], bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    host = hosts[0]
    process = host.start("new", epochs=8, seconds=0.05, GLASSBOX_STORE_TIMEOUT="4", IMPATIENT="1")
    read_until(process, "epoch 2")
    proxy.go_down()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 4
    assert f"saved at {host.cache}" in output
    assert "upload it with: resume s3://" in output
    folder = Path(output.split("saved at ")[-1].split(". Fix")[0])
    status = Run(folder).status()
    assert status["mirror"]["state"] == "behind"
    assert any("training continues" in notice for notice in status["notices"])

    proxy.come_up()
    assert "from epoch-0008" in host.train(epochs=8)
    run = fetch_run(parse_location(host.uri), ("metrics", "status"))
    assert len(run.metrics()) == 8
    assert run.status()["mirror"]["state"] == "mirrored"
    assert run.state() == "finished"


def test_a_stop_request_on_the_store_stops_the_run(hosts: list[Host], bucket: Bucket, tmp_path: Path) -> None:
    process = hosts[0].start("new", epochs=1000, seconds=0.05)
    read_until(process, "epoch")
    bucket.put("runs/first/.stop", b"the operator")
    output, _ = process.communicate(timeout=60)
    assert "stopped: the operator" in output
    run = pull(bucket, tmp_path / "copy")
    assert len(run.metrics()) == output.count("epoch ")
    assert "from epoch" in hosts[1].train(
        epochs=len(run.metrics()) + 1
    )  # the request does not outlive the stop


def test_a_damaged_checkpoint_on_the_store_is_skipped(
    hosts: list[Host], bucket: Bucket, tmp_path: Path
) -> None:
    hosts[0].train("new", epochs=3)
    names = {key.split("/")[-2] for key in bucket.list_keys("runs/first/checkpoints")}
    newest = max(names)
    assert find_epoch(newest) == 3
    bucket.put(f"runs/first/checkpoints/{newest}/state.npz", b"damaged")
    output = hosts[1].train(epochs=4)
    assert f"{newest} is damaged on the store" in output
    assert "from epoch-0002-step-0000001" in output
    assert len(pull(bucket, tmp_path / "copy").metrics()) == 4


def test_a_reader_fetches_only_what_it_needs_and_what_has_changed(
    hosts: list[Host], proxy: FaultProxy
) -> None:
    host = hosts[0]
    host.train("new", epochs=3)
    uri = parse_location(host.uri)
    assert isinstance(uri, Uri)
    proxy.requests.clear()
    run = fetch_run(uri, ("metrics", "records"))
    assert run.config()["preset"] == "none"
    assert len(run.metrics()) == 3
    assert proxy.count_requests("GET", "*state.npz") == proxy.count_requests("GET", "*model.keras") == 0
    fetch_run(uri, ("metrics", "records"))
    assert proxy.count_requests("GET", "*/metrics.jsonl") == 1
    host.train(epochs=4)
    assert len(fetch_run(uri, ("metrics",)).metrics()) == 4
    assert list(find_remote_runs(uri.parent.parent)) == [uri]


def test_a_new_run_is_refused_where_something_exists(hosts: list[Host], bucket: Bucket) -> None:
    hosts[0].train("new", epochs=1)
    process = hosts[1].start("new", epochs=1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Expected an output that does not exist yet" in output
    process = Host(hosts[2].cache, f"{bucket.url}/nothing").start("resume")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Expected a run directory" in output
    assert bucket.list_keys("nothing") == []


def test_failed_uploads_and_lost_responses_are_repeated(
    hosts: list[Host], bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    for name in ("config.yaml", "state.npz", "checkpoint.json", "metrics.jsonl", ".lease"):
        proxy.inject("status", method="PUT", key=f"*{name}", status=503)
        proxy.inject("reset", method="PUT", key=f"*{name}")  # after the store has written the object
    hosts[0].train("new", epochs=3)
    assert proxy.faults == []
    assert len(pull(bucket, tmp_path / "copy").metrics()) == 3
