"""Faults of machines: full disks, nodes that come and go, no room; one function each, as in `fault_cases`."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from fault_cases import Outcome, wait_for_recovery
from fault_lab import CALM, GLASSBOX, Lab, Training, check_rows, compute_difference, kill_tree

from pipelines.shards.manifest import load_manifest
from service.checkpoint import newest_checkpoint
from service.runs import Run

# Its mounts are seen by this process's children alone.
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")


def fill_disk(lab: Lab, epochs: int = 200) -> Outcome:
    """Fills the disk that the run is on after its first checkpoint, makes room, and resumes.

    With its own Ray, whose processes see that disk.
    """
    reference = lab.train_reference(1, f"epochs={epochs}")
    disk = lab.folder / "disk"
    out = lab.folder / "disk-run"
    disk.mkdir()
    glassbox = f"{sys.executable} -c '{GLASSBOX}'"
    options = f"--workers 1 --preset {lab.folder}/small.yaml --data {lab.shards} epochs={epochs}"
    script = f"""
mount -t tmpfs -o size=2m tmpfs {disk} || exit 77
{glassbox} train --out {disk}/run {options}
echo "exit $?"; cp -r {disk}/run {out}-full; rm {disk}/filler
{glassbox} train --resume --out {disk}/run; echo "exit $?"; cp -r {disk}/run {out}
"""
    env = {name: value for name, value in lab.env.items() if name not in ("RAY_ADDRESS", "GLASSBOX_ROWS_LOG")}
    training = Training(disk / "run", [*UNSHARE, "sh", "-c", script], env)
    inside = Path(f"/proc/{training.process.pid}/root{disk}")
    training.wait_for(lambda: list(inside.glob("run/checkpoints/epoch-*")))
    fill(inside / "filler")
    output = training.wait_for_exit()
    assert "exit 4\n" in output, output
    assert "No space left on device" in output, output
    assert output.endswith("exit 0\n"), output
    whole = newest_checkpoint(Path(f"{out}-full/checkpoints"), load_manifest(lab.shards).digest())
    assert whole is not None
    result = f"exit 4 in one sentence, {whole.position.name} still whole; finished when resumed"
    difference = compute_difference(Run(out), reference)
    return Outcome("a full disk at a checkpoint", 1, result, [], difference)


def fill(path: Path) -> None:
    """Writes to a file until its disk is full."""
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 512, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break


def add_and_lose_node(lab: Lab, epochs: int = 500) -> Outcome:
    """Adds a node, which takes a second worker, and kills it again. For a head of one CPU."""
    words = (CALM, f"epochs={epochs}")
    reference = lab.train_reference(1, *words)
    training = lab.train("elastic", "--workers", "1:2", "--cpus-per-worker", "1", *words, quick_checks=True)
    training.wait_for_steps()
    assert training.count_steps(1) == 0
    node = lab.add_node(1)
    start = time.monotonic()
    training.wait_for(lambda: training.count_steps(1) > 50)
    seconds = [time.monotonic() - start]
    lost = training.find_workers(node.pid)
    kill_tree(node.pid)
    seconds.append(wait_for_recovery(training, lost))
    output = training.wait_for_exit()
    check_rows(training.run, epochs)
    assert "there is room for more workers" in output
    assert output.count("a worker was lost") == 1, output
    assert training.run.status()["world_size"] == 1
    difference = compute_difference(training.run, reference)
    fault = "--workers 1:2: a node joins, and is lost"
    return Outcome(fault, 1, "1, 2, then 1 worker; finished", seconds, difference)


def lose_node(lab: Lab) -> Outcome:
    """Kills the node of one of two workers, and starts another. For a head of one CPU."""
    node = lab.add_node(1)
    reference = lab.train_reference(2)
    training = lab.train("lost-node", "--workers", "2", "--cpus-per-worker", "1")
    training.wait_for_steps()
    lost = training.find_workers(node.pid)
    assert len(lost) == 1
    kill_tree(node.pid)
    training.wait_for(lambda: "waiting for room for 2 workers" in training.output)
    another = lab.add_node(1)
    seconds = wait_for_recovery(training, lost)
    training.wait_for_exit()
    check_rows(training.run)
    kill_tree(another.pid)
    result = "waited for room, continued once there was another node, finished"
    difference = compute_difference(training.run, reference)
    return Outcome("a node is lost", 1, result, [seconds], difference)


HOLD_A_CPU = """
import ray, sys
ray.init("auto", logging_level="ERROR")
ray.util.placement_group([{"CPU": 1}]).wait()
print()
sys.stdin.read()
"""


def occupy_cluster(lab: Lab) -> Outcome:
    """Starts a training while another program uses the cluster."""
    other = subprocess.Popen(
        [sys.executable, "-uc", HOLD_A_CPU],
        env=lab.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    waiting = f"waiting for room for {lab.cpus} workers of 1 CPUs and 0 GPUs"
    try:
        other.stdout.readline()
        training = lab.train("busy", "--workers", str(lab.cpus), "--cpus-per-worker", "1", "epochs=1")
        training.wait_for(lambda: waiting in training.output)
        assert "but are in use" in training.output
        other.stdin.close()
        start = time.monotonic()
        training.wait_for(training.count_steps)
        seconds = time.monotonic() - start
        training.wait_for_exit()
    finally:
        other.kill()
    result = "prints that it waits for room; trains once there is"
    return Outcome("a busy cluster", 1, result, [seconds])


def request_too_many_workers(lab: Lab) -> Outcome:
    """Requests more workers than this machine has CPUs."""
    start = time.monotonic()
    training = lab.train("too-many", "--workers", "1000", "global_batch=1000")
    output = training.wait_for_exit(2)
    seconds = time.monotonic() - start
    expected = "Expected a cluster with room for 1000 workers of 1 CPUs and 0 GPUs. Received: nodes="
    assert expected in output, output
    assert not training.run.path.exists()
    return Outcome("more workers than the machine has CPUs", 1, "exit 2 in one sentence", [seconds])
