"""Prints the progress of a search: a line for every epoch of every trial, and for the end of each trial."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune

from pipelines.text import print_lines
from service.failures import find_memory_failure
from service.runs import Run
from service.tuning.trial import METRIC, TIME, record_end


class TrialLog(tune.Callback):  # type: ignore[misc]
    """Prints the results that trials report to Ray Tune, and records how the trials ended.

    Args:
        epochs: Epochs of a complete trial.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._printed: set[tuple[str, int]] = set()

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Prints an epoch of a trial, once: a trial that is started again reports its epochs again."""
        name = Path(trial.config["run"]).name
        epoch = result.get(TIME)
        if epoch is None or (name, epoch) in self._printed:
            return
        self._printed.add((name, epoch))
        score = f"best validation accuracy {result[METRIC]:.4f}"
        print_lines(f"{name}  epoch {epoch}/{self._epochs}  {score}")

    def on_trial_recover(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """Prints that the process of a trial died and is started again."""
        name = Path(trial.config["run"]).name
        print_lines(f"{name}  was lost: continuing from its last checkpoint")

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """Records and prints that a trial ended or was stopped."""
        run = Run(trial.config["run"])
        with suppress(OSError):
            record_end(run)
        print_lines(f"{run.path.name}  {run.status().get('reason') or 'finished'}")

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """Records and prints that a trial failed for good."""
        run = Run(trial.config["run"])
        reason = _find_reason(str(trial.get_error() or ""))
        with suppress(OSError):  # on a full disk the reason itself matters more
            record_end(run, reason)
        print_lines(f"{run.path.name}  failed: {run.status().get('reason') or reason}")


def _find_reason(traceback: str) -> str:
    """Finds the line of a traceback that names the error, or tells that Ray ended it for lack of memory."""
    if memory_failure := find_memory_failure(traceback):
        return str(memory_failure)
    lines = [line.strip() for line in traceback.splitlines() if line.strip()]
    if not lines:
        return "its process died"
    for line in lines:
        if line.split(":")[0].endswith("Error"):
            return line
    return lines[-1]
