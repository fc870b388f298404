"""What is saved and restored: every variable of model, optimizer and training, the position in the data, the configuration."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import ConfigError, TrainingError
from pipelines.storage import hash_file, replace_directory
from service.runs import score

STATE, DESCRIPTION = "state.npz", "checkpoint.json"
NAME = re.compile(r"epoch-(\d+)(?:-step-(\d+))?")
Variables = Mapping[
    str, Sequence[Any]
]  # of Keras or TensorFlow, by what they are for; those of the model first
Arrays = Mapping[str, Sequence[np.ndarray]]


@dataclass(frozen=True)
class Position:
    """Where a run stands, and in what.

    Attributes:
        data: Digest of the shard set's manifest.
        history: Metrics of every finished epoch, oldest first.
        step: Batches done of the epoch that follows.
        sums: What these came to, see `service.training.step.Steps.read_totals`.
        seconds: How long they took.
        skipped: How many updates of theirs changed nothing, for a gradient that was not finite.
    """

    data: str
    history: tuple[dict[str, float], ...] = ()
    step: int = 0
    sums: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    seconds: float = 0.0
    skipped: int = 0

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.history)

    @property
    def name(self) -> str:
        """Of its checkpoint."""
        return f"epoch-{self.epoch:04d}" + (f"-step-{self.step:07d}" if self.step else "")

    @property
    def best_epoch(self) -> int:
        """The epoch with the best score, the first of equals; 0 before the first."""
        scores = [score(metrics, self.history) for metrics in self.history]
        return scores.index(max(scores)) + 1 if scores else 0


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole.

    Attributes:
        path: Its directory.
        position: Where it stands.
        stage: Of the run, from 0.
        groups: How many variables of each group it holds.
        damaged: Newer ones that were passed over.
    """

    path: Path
    position: Position
    stage: int
    groups: dict[str, int]
    damaged: tuple[Path, ...] = ()

    def load(self, variables: Variables) -> None:
        """Puts the saved values into the variables of these groups.

        Raises:
            TrainingError: They are of another model or optimizer.
        """
        with np.load(self.path / STATE) as state:
            arrays = [state[name] for name in sorted(state.files)]
        ends = dict(zip(self.groups, accumulate(self.groups.values()), strict=True))
        for group, wanted in variables.items():
            saved = arrays[ends[group] - self.groups[group] : ends[group]]
            if [a.shape for a in saved] != [tuple(v.shape) for v in wanted]:
                raise TrainingError(
                    f"a checkpoint of the same model and optimizer ({group})",
                    f"checkpoint={self.path}",
                    "start a new run",
                )
            for variable, array in zip(wanted, saved, strict=True):
                variable.assign(array)


def variables_of(model: Any, optimizer: Any, training: Sequence[Any] = ()) -> Variables:
    """The variables a checkpoint holds, in a fixed order; dropout's seeds are set anew from the position.

    Args:
        model: Of Keras.
        optimizer: Of Keras.
        training: What else the training remembers: averages, the loss scale.
    """
    kept = [v for v in model.variables if "seed_generator_state" not in v.path]
    return {"model": kept, "optimizer": list(optimizer.variables), "training": list(training)}


def snapshot(variables: Variables) -> Arrays:
    """Copies of the values as they are now."""
    return {group: [np.array(v.numpy()) for v in members] for group, members in variables.items()}


def save_checkpoint(directory: Path, arrays: Arrays, position: Position, keep: int, **described: Any) -> Path:
    """Writes a checkpoint, whole or not at all, and removes all but the newest `keep` and that of the best epoch.

    Later ones go too: they were damaged, and passed over.

    Args:
        directory: The run's `checkpoints`.
        arrays: From `snapshot`.
        position: Where the run stands.
        keep: How many of the newest stay.
        described: More for its description: `stage`, `config`.
    """
    target = directory / position.name
    flat = [array for members in arrays.values() for array in members]
    with replace_directory(target) as temporary:
        np.savez(
            temporary / STATE, allow_pickle=False, **{f"{i:04d}": array for i, array in enumerate(flat)}
        )  # names of variables count up in a process
        groups = {"groups": {group: len(members) for group, members in arrays.items()}}
        description = (
            {"epoch": position.epoch, "stage": 0}
            | asdict(position)
            | described
            | groups
            | {"sha256": hash_file(temporary / STATE)}
        )
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
    best = Position(position.data, position.history[: position.best_epoch]).name
    found = list_checkpoints(directory)
    later = found.index(target) + 1
    for old in [*found[:later][:-keep], *found[later:]]:
        if old.name != best:
            shutil.rmtree(old)
    return target


def newest_checkpoint(directory: Path, data: str, model: str | None = None) -> Checkpoint | None:
    """The newest checkpoint that is whole.

    Args:
        directory: The run's `checkpoints`.
        data: Digest of the manifest that training is about to read.
        model: Name of the model about to be trained; None asks for no particular one.

    Raises:
        ConfigError: It was made with another shard set or model.
        TrainingError: There are checkpoints and every one is damaged.
    """
    damaged: list[Path] = []
    for path in reversed(list_checkpoints(directory)):
        found = _whole(path)
        if found is None:
            damaged.append(path)
            continue
        if found["data"] != data:
            raise ConfigError(
                "the shard set the run began with",
                f"checkpoint={path} (of another one)",
                "put the old shards back, or start a new run",
            )
        of = found.get("config", {}).get("model", model)
        if model is not None and of != model:
            raise ConfigError(
                f"the model the run began with, {of}",
                f"model={model}",
                "put the old name back, or start a new run",
            )
        position = Position(
            data,
            tuple(found["history"]),
            found["step"],
            tuple(found["sums"]),
            found["seconds"],
            found.get("skipped", 0),
        )
        return Checkpoint(path, position, found["stage"], found["groups"], tuple(damaged))
    if damaged:
        raise TrainingError(
            "an undamaged checkpoint", f"checkpoints={directory} (no digest fits)", "start a new run"
        )
    return None


def remove_unfinished(directory: Path) -> None:
    """Removes what a killed process left half-written."""
    for path in [*directory.glob(".tmp-*"), *directory.glob(".old-*")]:
        shutil.rmtree(path, ignore_errors=True)


def list_checkpoints(directory: Path) -> list[Path]:
    """All of them, oldest first."""
    found = [(match, path) for path in directory.glob("epoch-*") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda item: (int(item[0][1]), int(item[0][2] or 0)))]


def _whole(path: Path) -> dict[str, Any] | None:
    """The description of a checkpoint, or None where something of it is missing or damaged."""
    try:
        description: dict[str, Any] = json.loads((path / DESCRIPTION).read_text())
        missing = {"data", "history", "step", "sums", "seconds", "stage", "groups"} - description.keys()
        return description if description["sha256"] == hash_file(path / STATE) and not missing else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
