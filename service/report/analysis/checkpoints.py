"""Moments of a training: the checkpoints a run has kept, and how their weights get into its model."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import TrainingError
from service.checkpoint import DESCRIPTION, NAME, STATE
from service.runs import Run


@dataclass(frozen=True)
class RunCheckpoint:
    """A run at the end of an epoch.

    Attributes:
        epoch: How many it had finished.
        path: The checkpoint's directory.
    """

    epoch: int
    path: Path

    def load(self, model: Any) -> None:
        """Gives a model of the run the weights of this moment: as they were trained, not their moving average.

        Args:
            model: Of Keras.

        Raises:
            TrainingError: The checkpoint is damaged, or of another model.
        """
        variables = [variable for variable in model.variables if "seed_generator_state" not in variable.path]
        try:
            with np.load(self.path / STATE) as state:
                arrays = [
                    state[name] for name in sorted(state.files)[: len(variables)]
                ]  # those of the model stand first
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise TrainingError(
                "an undamaged checkpoint", f"checkpoint={self.path}", "remove it, or train the run again"
            ) from None
        if [array.shape for array in arrays] != [tuple(variable.shape) for variable in variables]:
            raise TrainingError(
                "a checkpoint of the run's own model",
                f"checkpoint={self.path}",
                "remove it, or train the run again",
            )
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)


def list_run_checkpoints(run: Run, most: int) -> list[RunCheckpoint]:
    """Up to `most` moments of a run, oldest first: the first and the last it kept, and between them evenly spread ones."""
    found = []
    for path in sorted(run.checkpoints.glob("epoch-*")):
        name = NAME.fullmatch(path.name)
        if name and not name[2] and (path / STATE).is_file() and _is_readable(path):
            found.append(RunCheckpoint(int(name[1]), path))
    if len(found) <= most:
        return found
    return [found[place] for place in np.unique(np.rint(np.linspace(0, len(found) - 1, most)).astype(int))]


def _is_readable(path: Path) -> bool:
    try:
        return isinstance(json.loads((path / DESCRIPTION).read_text()), dict)
    except (OSError, ValueError):
        return False
