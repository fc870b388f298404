"""Part i: trains twice, and once more with a kill in between, with `deterministic: true`: the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpu_context import CheckContext
from gpu_part import Checks
from gpu_processes import kill_process, run_processes, start_process, wait_until
from gpu_results import Row

EPOCHS = 3
MODEL = "cats_dogs_small_dropout"
AUGMENT = {"rotation": 20.0, "shift": 0.1, "zoom": 0.1, "flip": True, "brightness": 0.2}


def list_checks(context: CheckContext) -> Checks:
    """Yields the second run, then the one that is killed."""
    first: list[str] = []

    def train_first() -> str:
        if not first:
            first.append(train(context, "first"))
        return first[0]

    yield "two runs", lambda: compare_digests(context, "two runs", train_first(), train(context, "second"))
    yield (
        "killed and resumed",
        lambda: compare_digests(context, "killed and resumed", train_first(), train_killed(context)),
    )


def build_settings(context: CheckContext, name: str) -> dict[str, Any]:
    """Returns the settings of a process that trains the run with dropout, augmentation and evaluation."""
    model = "linear" if context.smallest else MODEL
    run: dict[str, Any] = {"deterministic": True, "epochs": EPOCHS, "augment": AUGMENT, "model": model}
    return {"shards": str(context.shards), "folder": context.scratch, "runs": {name: run}}


def train(context: CheckContext, name: str) -> str:
    """Trains a run to its end, and returns the digest of its weights."""
    settings = build_settings(context, name)
    (report,) = run_processes(context, [[0]], settings, f"{name}.log")
    return str(report["runs"][name]["digest"])


def train_killed(context: CheckContext) -> str:
    """Kills a run when its first checkpoint is written, resumes it, and returns the digest of its weights."""
    name = "killed"
    settings = build_settings(context, name)
    process = start_process(context, [0], settings, Path(context.scratch, f"{name}.log"))
    checkpoint = Path(context.scratch, name, "checkpoints", "epoch-0001", "checkpoint.json")
    try:
        if not wait_until(checkpoint.is_file, process, context):
            raise RuntimeError(f"exit {process.returncode} before the first checkpoint")
    finally:
        kill_process(process)
    return train(context, name)


def compare_digests(context: CheckContext, title: str, expected: str, actual: str) -> list[Row]:
    """Compares the weights of two runs."""
    is_equal = expected == actual
    return [
        Row(
            "i",
            f"{title}: the same weights",
            "of 1",
            **context.as_column(float(is_equal)),
            goal="to the bit",
            passed=is_equal,
            note=f"{EPOCHS} epochs, deterministic: true",
        )
    ]
