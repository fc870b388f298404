"""What can befall workers, driver and data of a run, one function each: does it, checks how that ended, says what it found."""

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
    EndedError,
    Lab,
    Training,
    check_rows,
    descendants,
    difference,
)


@dataclass
class Outcome:
    """What a fault led to.

    Attributes:
        fault: What was done.
        times: How often.
        happened: How it ended.
        seconds: To training again, or to the end; one for each time it was measured.
        apart: How far the last checkpoint is from the undisturbed run's (see `difference`); None where there is none to compare.
    """

    fault: str
    times: int
    happened: str
    seconds: list[float]
    apart: float | None = None


Case = Callable[[Lab], Outcome]


def killed_workers(
    lab: Lab, chance: random.Random, kills: int = 1, anywhere: float = 0.0, name: str = "killed"
) -> Outcome:
    """Kills random workers of two with -9: soon after they train, or, with a probability of `anywhere`, at any moment of their life."""
    epochs = EPOCHS * kills
    words = () if kills == 1 else (f"epochs={epochs}",)
    reference = lab.reference(2, *words)
    training = lab.train(name, "--workers", "2", "--restarts", "1000", *words)
    times, seconds = 0, []
    with suppress(EndedError):  # it was faster, and must then have ended well
        for _ in range(kills):
            if chance.random() < anywhere:
                training.wait_for(training.workers)
                time.sleep(chance.uniform(0, 8))
            else:
                training.trains(chance.randrange(2, 60))
            if workers := training.workers():
                chance.choice(workers).kill()
                times += 1
                seconds.append(recovered(training, workers))
    training.ends()
    check_rows(training.run, epochs)
    return Outcome(
        "kill -9 of a random worker",
        times,
        "started again, finished",
        seconds,
        difference(training.run, reference),
    )


def recovered(training: Training, lost: list[psutil.Process]) -> float:
    """Waits until a run trains again whose workers these were; returns how many seconds it took."""
    began, before = time.monotonic(), training.steps()
    training.wait_for(lambda: not any(worker.is_running() for worker in lost))
    training.wait_for(lambda: training.steps() > before + 2)  # the others may have done what they had begun
    return time.monotonic() - began


def silent_worker(lab: Lab, rank: int = 1, silence: int = 5) -> Outcome:
    """Stops a worker in mid-epoch without ending it."""
    reference = lab.reference(2)
    training = lab.train(
        f"silent-{rank}", "--workers", "2", RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S=str(silence)
    )
    training.trains()
    victim = training.workers()[-1 - rank]
    victim.suspend()
    seconds = recovered(training, [victim])  # gone: it could wake up and write
    training.ends()
    check_rows(training.run)
    told = f"found after {silence} s, ended, started again, finished"
    return Outcome(f"SIGSTOP of worker {rank}", 1, told, [seconds], difference(training.run, reference))


def stuck_start(lab: Lab) -> Outcome:
    """Stops a worker while it starts."""
    training = lab.train("stuck", "--workers", "2", RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="25")
    training.wait_for(training.workers)
    workers = training.workers()
    workers[0].suspend()
    began = time.monotonic()
    said = training.ends(4)
    assert "Expected workers that start" in said, said
    psutil.wait_procs(workers, timeout=60)
    assert not any(worker.is_running() for worker in workers)
    return Outcome(
        "SIGSTOP of a worker while it starts", 1, "exit 4 in one sentence", [time.monotonic() - began]
    )


def killed_driver(lab: Lab, workers: int = 1, damage: bool = False) -> Outcome:
    """Kills the driver of two workers, then resumes with some number of them, perhaps from a damaged checkpoint."""
    words = () if workers == 2 else (CALM,)
    reference = lab.reference(2, *words)
    training = lab.train(f"driver-{workers}-{damage}", "--workers", "2", *words)
    training.trains()
    training.wait_for(lambda: len(list(training.run.checkpoints.glob("epoch-*"))) > 1)
    trainers, others = training.workers(), descendants(training.process.pid)
    training.process.kill()
    began = time.monotonic()
    gone, alive = psutil.wait_procs(trainers, timeout=60)
    seconds = time.monotonic() - began
    assert len(gone) == 2, alive
    assert (training.run.status()["state"], training.run.state()) == ("training", "interrupted")
    if damage:
        (newest(training) / "state.npz").write_bytes(b"damaged")
    resumed = lab.train(training.run.path.name, "--resume", "--workers", str(workers))
    said = resumed.ends()
    assert not psutil.wait_procs(others, timeout=300)[1], (
        "of a Ray of its own something is left"
    )  # its agents take a minute
    assert not damage or "is damaged and was passed over: continuing from epoch-" in said
    check_rows(resumed.run)
    fault = f"kill -9 of the driver{', the last checkpoint damaged' if damage else ''}, --resume --workers {workers}"
    fault += "" if lab.nodes else " (on a Ray of its own)"
    told = "the workers end at once; finished when resumed"
    return Outcome(fault, 1, told, [seconds], difference(resumed.run, reference))


def preempted(lab: Lab) -> Outcome:
    """Sends the driver a SIGTERM soon after the first steps, then resumes."""
    reference = lab.reference(2)
    training = lab.train("preempted", "--workers", "2")
    training.trains(5)
    training.process.terminate()
    began = time.monotonic()
    said = training.ends(128 + signal.SIGTERM)
    seconds = time.monotonic() - began
    assert "glassbox: interrupted: saved; continue with: glassbox train --resume" in said, said
    assert training.run.status()["state"] == "interrupted"
    position = json.loads((newest(training) / "checkpoint.json").read_text())
    saved_at = position["epoch"] * EPOCH_STEPS + position["step"]
    assert saved_at == training.steps() > 0, f"saved at step {saved_at} of {training.steps()}"
    resumed = lab.train("preempted", "--resume")
    resumed.ends()
    check_rows(resumed.run)
    told = f"saved at the step it had reached ({saved_at}), exit 143; finished when resumed"
    return Outcome("SIGTERM to the driver", 1, told, [seconds], difference(resumed.run, reference))


def bad_row(lab: Lab, workers: int = 2) -> Outcome:
    """Changes one byte of an image that one worker reads late in the first epoch."""
    shards = shutil.copytree(lab.shards, lab.folder / f"flipped-{workers}")
    path = next(shards.glob("train-*"))
    with pa.memory_map(str(path)) as file:
        image = pa.ipc.open_file(file).read_all()["image"][ROWS // 2].as_py()
    data = bytearray(path.read_bytes())
    data[data.find(image) + len(image) // 2] ^= 0xFF
    path.write_bytes(data)
    training = lab.train(f"bad-row-{workers}", "--workers", str(workers), "--data", shards, "data.cache=none")
    said = training.ends(3)
    assert f"row={ROWS // 2}" in said or f"row {ROWS // 2}" in said, said
    assert "was lost" not in said
    return Outcome("a damaged image in one worker's data", 1, "exit 3 in one sentence that names the row", [])


def diverged(lab: Lab) -> Outcome:
    """Trains at a rate that makes the gradient infinite; once to stop, once to skip."""
    rate = "optimizer.learning_rate=1e38"
    said = lab.train("diverged", "--workers", "2", rate).ends(4)
    (sentence,) = [line for line in said.splitlines() if line.startswith("glassbox:")]
    assert all(word in sentence for word in ("a finite gradient", "step=", "learning_rate=1e+38", "rows=")), (
        sentence
    )
    return Outcome("NaN (rate of 1e38)", 1, "exit 4 in one sentence with step, rows and rate", [])


def diverged_and_skipped(lab: Lab) -> Outcome:
    """The same, told to leave such updates out: the first update was finite, and the network it made answers nothing else any more."""
    said = lab.train("skipped", "--workers", "2", "optimizer.learning_rate=1e38", "--on-nan", "skip").ends(4)
    assert "Expected a finite loss. Received: epoch=1" in said, said
    return Outcome(
        "NaN of every update, --on-nan skip", 1, "exit 4 in one sentence at the end of the epoch", []
    )


def newest(training: Training) -> Path:
    """The checkpoint that was written last."""
    return max(training.run.checkpoints.glob("epoch-*"), key=lambda path: path.stat().st_mtime)
