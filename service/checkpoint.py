"""Saves, finds and loads checkpoints: variables of model and optimizer, progress of the run, and settings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import ConfigError, TrainingError
from pipelines.storage import hash_archive, hash_file, replace_directory
from service.array_file import load_arrays, save_arrays
from service.checkpoint_record import (
    FILE_NAME,
    CheckpointRecord,
    format_record,
    list_checkpoints,
    parse_name,
    read_record,
    sort_checkpoints,
)
from service.milestones import find_milestone_epoch
from service.runs import Run, score

STATE = "state.npz"
DAMAGE_FIX = "remove it, or train the run again"
SEEDS = "seed_generator_state"  # part of the path of dropout seeds among the variables

# Variables of Keras or TensorFlow by their purpose; those of the model come first.
Variables = Mapping[str, Sequence[Any]]
Arrays = Mapping[str, Sequence[np.ndarray]]


@dataclass(frozen=True)
class Position:
    """Progress of a run: finished epochs, and batches of the current epoch.

    Attributes:
        data: Digest of the shard set's manifest.
        history: Metrics of every finished epoch, oldest first.
        step: Batches of the current epoch that have been trained on.
        sums: Totals over these batches, see `service.training.step.Steps.read_totals`.
        seconds: Training time of these batches.
        skipped: Updates in these batches that were skipped because a gradient was not finite.
        squared_gradients: Sums over these batches, see `service.training.layer_norms.GradientNorms`; empty at
            the end of an epoch.
    """

    data: str
    history: tuple[dict[str, float], ...] = ()
    step: int = 0
    sums: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    seconds: float = 0.0
    skipped: int = 0
    squared_gradients: tuple[float, ...] = ()

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    @property
    def name(self) -> str:
        """Name of the checkpoint at this position."""
        within_epoch = f"-step-{self.step:07d}" if self.step else ""
        return f"epoch-{self.epoch:04d}{within_epoch}"

    @property
    def best_epoch(self) -> int:
        """The epoch with the best score, the first of equal ones; 0 before the first epoch ends."""
        scores = [score(metrics, self.history) for metrics in self.history]
        return scores.index(max(scores)) + 1 if scores else 0

    @property
    def best_name(self) -> str:
        """Name of the checkpoint at the end of the best epoch."""
        return Position(self.data, self.history[: self.best_epoch]).name


@dataclass(frozen=True)
class Checkpoint:
    """An undamaged checkpoint, to resume from.

    Attributes:
        path: Directory of the checkpoint.
        position: Progress of the run at the checkpoint.
        stage: Stage of the run that it belongs to, from 0.
        groups: Number of variables in each group.
        damaged: Newer checkpoints that were skipped because they are damaged.
    """

    path: Path
    position: Position
    stage: int
    groups: dict[str, int]
    damaged: tuple[Path, ...] = ()

    def load(self, variables: Variables) -> None:
        """Assigns the saved values to variables.

        Args:
            variables: Some or all of the saved groups.

        Raises:
            TrainingError: The saved values are damaged, or belong to another model or optimizer.
        """
        arrays = _load_arrays(self.path, self.path / STATE)
        ends = dict(zip(self.groups, accumulate(self.groups.values()), strict=True))
        for group, targets in variables.items():
            saved = arrays[ends[group] - self.groups[group] : ends[group]]
            if [array.shape for array in saved] != [tuple(target.shape) for target in targets]:
                raise TrainingError(
                    f"a checkpoint of the same model and optimizer ({group})",
                    f"checkpoint={self.path}",
                    "start a new run",
                )
            for target, array in zip(targets, saved, strict=True):
                target.assign(array)


@dataclass(frozen=True)
class RunCheckpoint:
    """A checkpoint or a milestone at the end of an epoch, for reports on the model at that time.

    Attributes:
        epoch: Number of finished epochs.
        path: Directory of the checkpoint, or file of the milestone.
    """

    epoch: int
    path: Path

    def load(self, model: Any) -> None:
        """Assigns the weights of the checkpoint to a model: the trained weights, not their moving average.

        Args:
            model: Keras model of the run.

        Raises:
            TrainingError: The checkpoint is damaged, or belongs to another model.
        """
        variables = _select_model_variables(model)
        is_milestone = self.path.suffix == ".npz"
        if not is_milestone and _read_whole(self.path) is None:
            raise TrainingError("an undamaged checkpoint", f"checkpoint={self.path}", DAMAGE_FIX)
        file = self.path if is_milestone else self.path / STATE
        arrays = _load_arrays(self.path, file, len(variables))  # the variables of the model come first
        if [array.shape for array in arrays] != [tuple(variable.shape) for variable in variables]:
            raise TrainingError("a checkpoint of the run's own model", f"checkpoint={self.path}", DAMAGE_FIX)
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)


def list_run_checkpoints(run: Run, limit: int) -> list[RunCheckpoint]:
    """Lists checkpoints and milestones at ends of epochs, oldest first: the first, middle, best and last one.

    Damaged checkpoints are listed too, unless there is a milestone of their epoch; loading them fails.

    Args:
        run: The run they belong to.
        limit: Largest number to return, see `choose_epochs`.
    """
    saved = {}
    for path in sorted(run.milestones.glob("*.npz")):
        epoch = find_milestone_epoch(path.name)
        if epoch:
            saved[epoch] = RunCheckpoint(epoch, path)
    for path in list_checkpoints(run.checkpoints):
        epoch, step = parse_name(path.name) or (0, 0)
        is_begun = any(os.path.lexists(path / name) for name in (FILE_NAME, STATE))
        if step == 0 and is_begun and (epoch not in saved or read_record(path)):
            saved[epoch] = RunCheckpoint(epoch, path)
    best = Position("", tuple(run.metrics())).best_epoch
    return [saved[epoch] for epoch in choose_epochs(saved, best, limit)]


def choose_epochs(epochs: Iterable[int], best: int, limit: int) -> list[int]:
    """Chooses epochs that show how a run has developed, in order.

    Args:
        epochs: The epochs to choose from.
        best: The best epoch of the run; ignored if it is not among them.
        limit: Largest number to choose: the first, the last, the one in the middle and the best one, then
            those that are farthest from all others.
    """
    remaining = sorted(epochs)
    if not remaining:
        return []
    first, last = remaining[0], remaining[-1]
    priority = [first, last, find_middle_epoch(remaining)]
    if best in remaining:
        priority.append(best)
    chosen = list(dict.fromkeys(priority))[:limit]
    while len(chosen) < min(limit, len(remaining)):
        distances = {epoch: min(abs(epoch - other) for other in chosen) for epoch in remaining}
        chosen.append(max(remaining, key=lambda epoch: distances[epoch]))  # the first of equally distant ones
    return sorted(chosen)


def find_middle_epoch(epochs: Sequence[int]) -> int:
    """Finds the epoch that is closest to halfway from the first to the last, the first of equally close ones.

    Args:
        epochs: Epochs in order, at least one.
    """
    return min(epochs, key=lambda epoch: abs(2 * epoch - epochs[0] - epochs[-1]))


def variables_of(model: Any, optimizer: Any, training: Sequence[Any] = ()) -> Variables:
    """Returns the variables that a checkpoint holds, in a fixed order.

    Seeds of dropout are left out: they are derived from the position.

    Args:
        model: Keras model that is trained.
        optimizer: Keras optimizer of the current stage.
        training: Other variables of the training, such as averages and the loss scale.
    """
    return {
        "model": _select_model_variables(model),
        "optimizer": list(optimizer.variables),
        "training": list(training),
    }


def _select_model_variables(model: Any) -> list[Any]:
    return [variable for variable in model.variables if SEEDS not in variable.path]


def snapshot(variables: Variables) -> Arrays:
    """Copies the current values of variables."""
    return {
        group: [np.array(variable.numpy()) for variable in members] for group, members in variables.items()
    }


def save_checkpoint(
    directory: Path, arrays: Arrays, position: Position, keep: int, **description: Any
) -> Path:
    """Writes a checkpoint atomically, and removes all others but the newest and that of the best epoch.

    Checkpoints of later positions are removed too: training skipped them because they were damaged.

    Args:
        directory: The run's `checkpoints`.
        arrays: Values of all variables, from `snapshot`.
        position: Progress of the run.
        keep: Number of newest checkpoints to keep, including this one.
        description: Further entries of the checkpoint's description: `stage`, `config`.

    Returns:
        Directory of the checkpoint.
    """
    target = directory / position.name
    flat = [array for members in arrays.values() for array in members]
    with replace_directory(target) as temporary:
        save_arrays(temporary / STATE, flat)
        entries = {"epoch": position.epoch, "stage": 0} | asdict(position) | description
        entries["groups"] = {group: len(members) for group, members in arrays.items()}
        entries["sha256"] = hash_file(temporary / STATE)
        (temporary / FILE_NAME).write_text(format_record(entries))

    names = [path.name for path in list_checkpoints(directory)]
    for name in find_obsolete(names, target.name, position.best_name, keep):
        shutil.rmtree(directory / name)
    return target


def find_obsolete(names: Iterable[str], newest: str, best: str, keep: int) -> list[str]:
    """Finds the checkpoints that a run does not keep after the newest one is saved, oldest first.

    Checkpoints of later positions are among them: training skipped them because they were damaged.

    Args:
        names: Names of all checkpoints, the newest included.
        newest: Name of the checkpoint that was saved last.
        best: Name of the checkpoint of the best epoch.
        keep: Number of newest checkpoints that are kept.
    """
    ordered = sort_checkpoints(names)
    end = ordered.index(newest) + 1
    return [name for name in [*ordered[:end][:-keep], *ordered[end:]] if name != best]


def newest_checkpoint(directory: Path, data: str, model: str | None = None) -> Checkpoint | None:
    """Finds the newest undamaged checkpoint; None if there are no checkpoints.

    Args:
        directory: The run's `checkpoints`.
        data: Digest of the manifest that training is about to read.
        model: Name of the model that is about to be trained; None accepts any.

    Raises:
        ConfigError: The checkpoint belongs to another shard set or model.
        TrainingError: All checkpoints are damaged.
    """
    damaged: list[Path] = []
    for path in reversed(list_checkpoints(directory)):
        record = _read_whole(path)
        if record is None:
            damaged.append(path)
            continue
        _check_same(path, record, data, model)
        position = Position(
            data,
            record.history,
            record.step,
            record.sums,
            record.seconds,
            record.skipped,
            record.squared_gradients,
        )
        return Checkpoint(path, position, record.stage, record.groups, tuple(damaged))
    if damaged:
        raise TrainingError(
            "an undamaged checkpoint", f"checkpoints={directory} (no digest fits)", "start a new run"
        )
    return None


def _check_same(path: Path, record: CheckpointRecord, data: str, model: str | None) -> None:
    """Checks that a checkpoint belongs to a shard set and a model."""
    if record.data != data:
        raise ConfigError(
            "the shard set the run began with",
            f"checkpoint={path} (of another one)",
            "put the old shards back, or start a new run",
        )
    saved_model = str(record.config.get("model", model))
    if model is None or _strip_folder(saved_model) == _strip_folder(model):
        return
    raise ConfigError(
        f"the model the run began with, {saved_model}",
        f"model={model}",
        "put the old name back, or start a new run",
    )


def _strip_folder(model: str) -> str:
    """Returns a model's name without the folder of its file, which changes if the run directory is moved."""
    return model.rpartition("/")[2]


def remove_unfinished(directory: Path) -> None:
    """Removes incomplete checkpoints of a killed process.

    Args:
        directory: The run's `checkpoints`.
    """
    for path in [*directory.glob(".tmp-*"), *directory.glob(".old-*")]:
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class NewestCheckpoint:
    """The newest checkpoint of a run, and which others the run keeps.

    Attributes:
        name: Name of the checkpoint.
        best: Name of the checkpoint of the best epoch.
        keep: Number of newest checkpoints that are kept.
    """

    name: str
    best: str
    keep: int


def describe_newest(directory: Path) -> NewestCheckpoint | None:
    """Describes the newest checkpoint that has a record, damaged or not; None if there is none.

    Args:
        directory: The run's `checkpoints`.
    """
    for path in reversed(list_checkpoints(directory)):
        record = read_record(path)
        keep = record and record.config.get("keep_checkpoints")
        if record and isinstance(keep, int):
            return NewestCheckpoint(path.name, Position(record.data, record.history).best_name, keep)
    return None


def find_epoch(name: str) -> int:
    """Returns the number of finished epochs at a checkpoint, from its name; 0 for other names."""
    position = parse_name(name)
    return position[0] if position else 0


def _load_arrays(checkpoint: Path, file: Path, limit: int | None = None) -> list[np.ndarray]:
    """Loads the arrays of a checkpoint or a milestone.

    Args:
        checkpoint: Directory of the checkpoint, or file of the milestone, for the message.
        file: File with the arrays.
        limit: Number of arrays to load; None for all.

    Raises:
        TrainingError: The file is damaged, or declares more than it holds.
    """
    try:
        return load_arrays(file, limit)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        received = f"checkpoint={checkpoint} ({reason})"
        raise TrainingError("an undamaged checkpoint", received, DAMAGE_FIX) from None


def _read_whole(path: Path) -> CheckpointRecord | None:
    """Reads the record of a checkpoint; None if a part of the checkpoint is missing or damaged."""
    record = read_record(path)
    try:
        return record if record and record.sha256 == hash_archive(path / STATE) else None
    except (OSError, ValueError):
        return None
