"""A training without a model, in a process of its own: it writes a run on a store as the loop writes it.

    python mirror_script.py URI new|resume EPOCHS SECONDS_PER_STEP

The variables follow from those before, so that their last values show whether a step was lost or repeated.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from pipelines.errors import GlassboxError
from pipelines.remote.uri import parse_location
from service.checkpoint import Position, newest_checkpoint, save_checkpoint
from service.mirror import mirror
from service.mirror.output import open_output
from service.runs import Run

STEPS = 2  # checkpoints within an epoch and at its end
KEEP = 2
DATA = "digest"


class Variable:
    """A variable that a checkpoint can be loaded into."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value
        self.shape = value.shape

    def assign(self, value: np.ndarray) -> None:
        """Replaces the value."""
        self.value = value


def train(run: Run, epochs: int, seconds: float) -> None:
    weights = Variable(np.arange(1000.0))
    checkpoint = newest_checkpoint(run.checkpoints, DATA)
    position = Position(DATA)
    if checkpoint:
        checkpoint.load({"model": [weights]})
        position = checkpoint.position
    run.write_metrics(position.history)
    run.update_status(state="training")
    print(f"from {position.name}", flush=True)
    while position.epoch < epochs:
        for step in range(position.step + 1, STEPS):
            time.sleep(seconds)
            weights.value = np.sin(weights.value + position.epoch + step / STEPS)
            position = Position(DATA, position.history, step)
            save(run, weights, position)
            if run.stop_requested():
                raise SystemExit(f"stopped: {run.stop_requested()}")
        time.sleep(seconds)
        weights.value = np.sin(weights.value + position.epoch)
        metrics = {"epoch": position.epoch + 1, "accuracy": 0.5 + position.epoch % 3 / 10}
        position = Position(DATA, (*position.history, metrics))
        if position.best_epoch == position.epoch:
            run.write_model(lambda path: write_weights(path, weights))
        save(run, weights, position)
        run.write_metrics(position.history)
        run.update_status(progress={"epoch": position.epoch})
        print(f"epoch {position.epoch}", flush=True)
    run.update_status(state="finished")


def save(run: Run, weights: Variable, position: Position) -> None:
    config = {"keep_checkpoints": KEEP, "model": "none"}
    save_checkpoint(run.checkpoints, {"model": [weights.value]}, position, KEEP, config=config)


def write_weights(path: Path, weights: Variable) -> None:
    with path.open("wb") as file:
        np.save(file, weights.value)


def main() -> None:
    uri, mode, epochs, seconds = sys.argv[1:]
    location = parse_location(uri)
    if os.environ.get("IMPATIENT"):  # tells of an outage at once, and does not wait for the store at the end
        mirror.NOTICE_SECONDS = 0.0
        mirror.FINAL_SECONDS = 2.0
    try:
        with open_output(location, mode == "new", lambda name: f"resume {name}") as output:
            if mode == "new":
                output.run.create({"preset": "none", "keep_checkpoints": KEEP, "model": "none"})
            output.start()
            print(f"started {os.getpid()} {output.run.path}", flush=True)
            try:
                train(output.run, int(epochs), float(seconds))
            except SystemExit:
                if output.loss:
                    raise output.loss from None
                raise
    except GlassboxError as error:
        print(error, flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
