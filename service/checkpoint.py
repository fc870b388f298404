"""What is saved and restored: every variable of model and optimizer, and the position in the data."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.errors import ConfigError, TrainingError
from pipelines.storage import replacing_directory, sha256
from service.runs import score

if TYPE_CHECKING:
    from collections.abc import Sequence

    import keras

STATE, DESCRIPTION = "state.npz", "checkpoint.json"


@dataclass(frozen=True)
class Position:
    """Where a run stands, and in what.

    Attributes:
        data: Digest of the shard set's manifest.
        history: Metrics of every finished epoch, oldest first.
    """

    data: str
    history: tuple[dict[str, float], ...] = ()

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.history)

    @property
    def best(self) -> float:
        """The best score so far; below any score before the first epoch."""
        return max(map(score, self.history), default=-1.0)


def variables_of(model: keras.Model, optimizer: keras.Optimizer) -> list[keras.Variable]:
    """The variables a checkpoint holds, in a fixed order; dropout's seeds are set anew from the position."""
    return [v for v in [*model.variables, *optimizer.variables] if "seed_generator_state" not in v.path]


def save_checkpoint(directory: Path, variables: Sequence[keras.Variable], position: Position, keep: int) -> Path:
    """Writes `epoch-NNNN`, whole or not at all, and removes all but the newest `keep`.

    Args:
        directory: The run's `checkpoints`.
        variables: See `variables_of`.
        position: Where the run stands.
        keep: How many checkpoints stay.
    """
    target = directory / f"epoch-{position.epoch:04d}"
    arrays = {f"{i:04d}": v.numpy() for i, v in enumerate(variables)}  # by order: names count up within a process
    with replacing_directory(target) as temporary:
        np.savez(temporary / STATE, **arrays)
        description = (
            {"epoch": position.epoch} | asdict(position) | {"sha256": sha256(temporary / STATE), "variables": [v.path for v in variables]}
        )
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
    for old in _checkpoints(directory)[:-keep]:
        shutil.rmtree(old)
    return target


def restore_latest(directory: Path, variables: Sequence[keras.Variable], data: str) -> Position | None:
    """Loads the newest checkpoint that is whole into the variables.

    Args:
        directory: The run's `checkpoints`.
        variables: See `variables_of`.
        data: Digest of the manifest that training is about to read.

    Returns:
        Its position, or None where there is no checkpoint.

    Raises:
        ConfigError: It was made with another shard set.
        TrainingError: There are checkpoints and every one is damaged, or they are of another model.
    """
    found = _checkpoints(directory)
    for path in reversed(found):
        description = _whole(path)
        if description is None:
            continue
        if description["data"] != data:
            raise ConfigError(
                "the shard set the run began with", f"checkpoint={path} (of another one)", "put the old shards back, or start a new run"
            )
        _assign(path, variables)
        return Position(data, tuple(description["history"]))
    if found:
        raise TrainingError("an undamaged checkpoint", f"checkpoints={directory} (no digest fits)", "start a new run")
    return None


def _checkpoints(directory: Path) -> list[Path]:
    return sorted(directory.glob("epoch-*"), key=lambda path: int(path.name.removeprefix("epoch-")))


def _whole(path: Path) -> dict[str, Any] | None:
    """The description of a checkpoint, or None where something of it is missing or damaged."""
    try:
        description: dict[str, Any] = json.loads((path / DESCRIPTION).read_text())
        return description if description["sha256"] == sha256(path / STATE) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _assign(path: Path, variables: Sequence[keras.Variable]) -> None:
    with np.load(path / STATE) as state:
        arrays = [state[name] for name in sorted(state.files)]
    if [a.shape for a in arrays] != [tuple(v.shape) for v in variables]:
        raise TrainingError("a checkpoint of the same model and optimizer", f"checkpoint={path}", "start a new run")
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
