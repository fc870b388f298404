"""What can befall the machines that a run is on: full disks, nodes that come and go, no room."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from fault_cases import Outcome, recovered
from fault_lab import CALM, GLASSBOX, Lab, Training, check_rows, difference, kill_tree

from pipelines.shards.manifest import load_manifest
from service.checkpoint import newest_checkpoint
from service.runs import Run

UNSHARED = (
    "unshare",
    "--user",
    "--map-root-user",
    "--mount",
)  # mounts that this process's children alone see


def full_disk(lab: Lab, epochs: int = 40) -> Outcome:
    """Fills the disk that the run is on after its first checkpoint; makes room; resumes. On a Ray of its own, which sees that disk."""
    reference = lab.reference(1, f"epochs={epochs}")
    disk, out = lab.folder / "disk", lab.folder / "disk-run"
    disk.mkdir()
    glassbox = f"{sys.executable} -c '{GLASSBOX}'"
    script = f"""
mount -t tmpfs -o size=2m tmpfs {disk} || exit 77
{glassbox} train --out {disk}/run --workers 1 --preset {lab.folder}/small.yaml --data {lab.shards} epochs={epochs}
echo "exit $?"; cp -r {disk}/run {out}-full; rm {disk}/filler
{glassbox} train --resume --out {disk}/run; echo "exit $?"; cp -r {disk}/run {out}
"""
    env = {name: value for name, value in lab.env.items() if name not in ("RAY_ADDRESS", "GLASSBOX_ROWS_LOG")}
    training = Training(disk / "run", [*UNSHARED, "sh", "-c", script], env)
    inside = Path(f"/proc/{training.process.pid}/root{disk}")
    training.wait_for(lambda: list(inside.glob("run/checkpoints/epoch-*")))
    fill(inside / "filler")
    said = training.ends()
    assert "exit 4\n" in said, said
    assert "No space left on device" in said, said
    assert said.endswith("exit 0\n"), said
    whole = newest_checkpoint(Path(f"{out}-full/checkpoints"), load_manifest(lab.shards).digest())
    assert whole is not None
    told = f"exit 4 in one sentence, {whole.position.name} still whole; finished when resumed"
    return Outcome("a full disk at a checkpoint", 1, told, [], difference(Run(out), reference))


def fill(path: Path) -> None:
    """Writes until nothing more goes in."""
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 512, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break


def elastic(lab: Lab, epochs: int = 150) -> Outcome:
    """From one worker to two as a node joins, and back to one as it is lost. For a head of one CPU."""
    words = (CALM, f"epochs={epochs}")
    reference = lab.reference(1, *words)
    training = lab.train("elastic", "--workers", "1:2", "--cpus-per-worker", "1", *words, quick_looks=True)
    training.trains()
    assert training.steps(1) == 0
    node = lab.add_node(1)
    began = time.monotonic()
    training.wait_for(lambda: training.steps(1) > 50)
    seconds = [time.monotonic() - began]
    lost = training.workers(node.pid)
    kill_tree(node.pid)
    seconds.append(recovered(training, lost))
    said = training.ends()
    check_rows(training.run, epochs)
    assert "there is room for more workers" in said
    assert said.count("a worker was lost") == 1, said
    assert training.run.status()["world_size"] == 1
    return Outcome(
        "--workers 1:2: a node joins, and is lost",
        1,
        "1, 2, then 1 worker; finished",
        seconds,
        difference(training.run, reference),
    )


def lost_node(lab: Lab) -> Outcome:
    """Loses the node of one of two workers, and gets another. For a head of one CPU."""
    node = lab.add_node(1)
    reference = lab.reference(2)
    training = lab.train("lost-node", "--workers", "2", "--cpus-per-worker", "1")
    training.trains()
    lost = training.workers(node.pid)
    assert len(lost) == 1
    kill_tree(node.pid)
    training.wait_for(lambda: "waiting for room for 2 workers" in training.said)
    another = lab.add_node(1)
    seconds = recovered(training, lost)
    training.ends()
    check_rows(training.run)
    kill_tree(another.pid)
    told = "waited for room, went on when there was another node, finished"
    return Outcome("a node is lost", 1, told, [seconds], difference(training.run, reference))


def busy_cluster(lab: Lab) -> Outcome:
    """Asks for workers while somebody else uses the cluster."""
    code = "import ray, sys; ray.init('auto', logging_level='ERROR'); ray.util.placement_group([{'CPU': 1}]).wait(); print(); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-uc", code],
        env=lab.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        other.stdout.readline()
        training = lab.train("busy", "--workers", str(lab.cpus), "--cpus-per-worker", "1", "epochs=1")
        training.wait_for(
            lambda: f"waiting for room for {lab.cpus} workers of 1 CPUs and 0 GPUs" in training.said
        )
        assert "but are in use" in training.said
        other.stdin.close()
        began = time.monotonic()
        training.wait_for(training.steps)
        seconds = time.monotonic() - began
        training.ends()
    finally:
        other.kill()
    return Outcome("a busy cluster", 1, "says that it waits for room; trains when there is", [seconds])


def too_many_workers(lab: Lab) -> Outcome:
    """Asks this machine for more than it has."""
    began = time.monotonic()
    training = lab.train("too-many", "--workers", "1000", "global_batch=1000")
    said = training.ends(2)
    seconds = time.monotonic() - began
    assert "Expected a cluster with room for 1000 workers of 1 CPUs and 0 GPUs. Received: nodes=" in said
    assert not training.run.path.exists()
    return Outcome("more workers than the machine has CPUs", 1, "exit 2 in one sentence", [seconds])
