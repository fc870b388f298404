"""Faults of workers, driver and data, one function each: causes the fault, checks the outcome, returns it."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
from fault_lab import (
    CALM,
    EPOCH_STEPS,
    EPOCHS,
    ROWS,
    ExitedError,
    Lab,
    Training,
    check_rows,
    compute_difference,
    find_descendants,
)


@dataclass
class Outcome:
    """The outcome of a fault.

    Attributes:
        fault: Description of the fault.
        count: Number of times that it was caused.
        result: What it led to.
        seconds: Time until training continued, or until the exit, of each time that was measured.
        difference: Distance of the last checkpoint from that of the undisturbed run, as `compute_difference`
            returns it; None if there is none to compare.
    """

    fault: str
    count: int
    result: str
    seconds: list[float]
    difference: float | None = None


Case = Callable[[Lab], Outcome]


def kill_workers(
    lab: Lab, chance: random.Random, kills: int = 1, at_any_time: float = 0.0, name: str = "killed"
) -> Outcome:
    """Kills random workers of two with SIGKILL.

    Args:
        lab: Cluster with room for two workers.
        chance: Source of the random choices.
        kills: Number of kills in the run, which gets longer with it.
        at_any_time: Probability of a kill at any time of a worker's life, start included; else it comes soon
            after the first steps.
        name: Name of the run.
    """
    epochs = EPOCHS * kills
    words = () if kills == 1 else (f"epochs={epochs}",)
    reference = lab.train_reference(2, *words)
    training = lab.train(name, "--workers", "2", "--restarts", "1000", *words)
    count = 0
    seconds = []
    with suppress(ExitedError):  # it was faster than the kills, and must have finished
        for _ in range(kills):
            if chance.random() < at_any_time:
                training.wait_for(training.find_workers)
                time.sleep(chance.uniform(0, 8))
            else:
                training.wait_for_steps(chance.randrange(2, 60))
            if workers := training.find_workers():
                chance.choice(workers).kill()
                count += 1
                seconds.append(wait_for_recovery(training, workers))
    training.wait_for_exit()
    check_rows(training.run, epochs)
    difference = compute_difference(training.run, reference)
    return Outcome("kill -9 of a random worker", count, "restarted, finished", seconds, difference)


def wait_for_recovery(training: Training, lost: list[psutil.Process]) -> float:
    """Waits until these workers are gone and the run trains again; returns the seconds that it took."""
    start = time.monotonic()
    before = training.count_steps()
    training.wait_for(lambda: not any(worker.is_running() for worker in lost))
    training.wait_for(lambda: training.count_steps() > before + 64)  # the others may have ended their call
    return time.monotonic() - start


def stop_worker(lab: Lab, rank: int = 1, silence: int = 5) -> Outcome:
    """Suspends a worker in the middle of an epoch."""
    reference = lab.train_reference(2)
    timeout = {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(silence)}
    training = lab.train(f"silent-{rank}", "--workers", "2", **timeout)
    training.wait_for_steps()
    victim = training.find_workers()[-1 - rank]
    victim.suspend()
    seconds = wait_for_recovery(training, [victim])  # it must be gone: it could wake up and write
    training.wait_for_exit()
    check_rows(training.run)
    result = f"detected after {silence} s, killed, restarted, finished"
    difference = compute_difference(training.run, reference)
    return Outcome(f"SIGSTOP of worker {rank}", 1, result, [seconds], difference)


def stop_starting_worker(lab: Lab) -> Outcome:
    """Suspends a worker while it starts."""
    training = lab.train("stuck", "--workers", "2", RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="25")
    training.wait_for(training.find_workers)
    workers = training.find_workers()
    workers[0].suspend()
    start = time.monotonic()
    output = training.wait_for_exit(4)
    assert "Expected workers that start" in output, output
    psutil.wait_procs(workers, timeout=60)
    assert not any(worker.is_running() for worker in workers)
    seconds = time.monotonic() - start
    return Outcome("SIGSTOP of a worker while it starts", 1, "exit 4 in one sentence", [seconds])


def kill_driver(lab: Lab, workers: int = 1, damage: bool = False) -> Outcome:
    """Kills the driver of two workers, then resumes the run.

    Args:
        lab: Cluster with room for two workers, or none.
        workers: Number of workers that the run is resumed with.
        damage: Whether the last checkpoint is damaged before.
    """
    words = () if workers == 2 else (CALM,)
    reference = lab.train_reference(2, *words)
    training = lab.train(f"driver-{workers}-{damage}", "--workers", "2", *words)
    training.wait_for_steps()
    training.wait_for(lambda: len(list(training.run.checkpoints.glob("epoch-*"))) > 1)
    trainers = training.find_workers()
    descendants = find_descendants(training.process.pid)
    training.process.kill()
    start = time.monotonic()
    gone, alive = psutil.wait_procs(trainers, timeout=60)
    seconds = time.monotonic() - start
    assert len(gone) == 2, alive
    assert (training.run.status()["state"], training.run.state()) == ("training", "interrupted")
    if damage:
        (find_newest_checkpoint(training) / "state.npz").write_bytes(b"damaged")
    resumed = lab.train(training.run.path.name, "--resume", "--workers", str(workers))
    output = resumed.wait_for_exit()
    survivors = psutil.wait_procs(descendants, timeout=300)[1]  # Ray's agents take a minute
    assert not survivors, "processes of the driver's own Ray are left"
    assert not damage or "is damaged: continuing from epoch-" in output
    check_rows(resumed.run)
    damaged = ", the last checkpoint damaged" if damage else ""
    own_ray = "" if lab.nodes else " (with its own Ray)"
    fault = f"kill -9 of the driver{damaged}, --resume --workers {workers}{own_ray}"
    difference = compute_difference(resumed.run, reference)
    return Outcome(fault, 1, "the workers exit at once; finished when resumed", [seconds], difference)


def terminate_driver(lab: Lab) -> Outcome:
    """Sends the driver a SIGTERM soon after the first steps, then resumes the run."""
    reference = lab.train_reference(2)
    training = lab.train("preempted", "--workers", "2")
    training.wait_for_steps(5)
    training.process.terminate()
    start = time.monotonic()
    output = training.wait_for_exit(128 + signal.SIGTERM)
    seconds = time.monotonic() - start
    assert "glassbox: interrupted: saved; continue with: glassbox train --resume" in output, output
    assert training.run.status()["state"] == "interrupted"
    position = json.loads((find_newest_checkpoint(training) / "checkpoint.json").read_text())
    saved_at = position["epoch"] * EPOCH_STEPS + position["step"]
    assert saved_at == training.count_steps() > 0, f"saved at step {saved_at} of {training.count_steps()}"
    resumed = lab.train("preempted", "--resume")
    resumed.wait_for_exit()
    check_rows(resumed.run)
    result = f"saved at the step that it had reached ({saved_at}), exit 143; finished when resumed"
    difference = compute_difference(resumed.run, reference)
    return Outcome("SIGTERM to the driver", 1, result, [seconds], difference)


def damage_row(lab: Lab, workers: int = 2) -> Outcome:
    """Changes one byte of an image that one worker reads late in the first epoch."""
    shards = shutil.copytree(lab.shards, lab.folder / f"flipped-{workers}")
    path = next(shards.glob("train-*"))
    with pa.memory_map(str(path)) as file:
        image = pa.ipc.open_file(file).read_all()["image"][ROWS // 2].as_py()
    data = bytearray(path.read_bytes())
    data[data.find(image) + len(image) // 2] ^= 0xFF
    path.write_bytes(data)
    options = ("--workers", str(workers), "--data", shards, "data.cache=none")
    output = lab.train(f"bad-row-{workers}", *options).wait_for_exit(3)
    assert f"row={ROWS // 2}" in output or f"row {ROWS // 2}" in output, output
    assert "was lost" not in output
    return Outcome("a damaged image in one worker's data", 1, "exit 3 in one sentence that names the row", [])


def diverge(lab: Lab) -> Outcome:
    """Trains at a learning rate that makes the gradient infinite."""
    output = lab.train("diverged", "--workers", "2", "optimizer.learning_rate=1e38").wait_for_exit(4)
    (sentence,) = [line for line in output.splitlines() if line.startswith("glassbox:")]
    for part in ("a finite gradient", "step=", "learning_rate=1e+38", "rows="):
        assert part in sentence, sentence
    return Outcome("NaN (learning rate 1e38)", 1, "exit 4 in one sentence with step, rate and rows", [])


def diverge_and_skip(lab: Lab) -> Outcome:
    """Trains at the same rate and skips updates that are not finite.

    The first update is finite; the model that it makes predicts nothing finite any more.
    """
    words = ("--workers", "2", "optimizer.learning_rate=1e38", "--on-nan", "skip")
    output = lab.train("skipped", *words).wait_for_exit(4)
    assert "Expected a finite loss. Received: epoch=1" in output, output
    result = "exit 4 in one sentence at the end of the epoch"
    return Outcome("NaN in every update, --on-nan skip", 1, result, [])


def find_newest_checkpoint(training: Training) -> Path:
    """Returns the checkpoint that was written last."""
    return max(training.run.checkpoints.glob("epoch-*"), key=lambda path: path.stat().st_mtime)
