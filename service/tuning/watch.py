"""What a search tells while it runs: a line for every epoch of every trial, and how trials end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune

from service.runs import Run
from service.tuning.trial import METRIC, TIME, settle


class Watch(tune.Callback):  # type: ignore[misc]
    """Prints what Ray Tune hears of the trials, and writes down how they ended.

    Args:
        epochs: Of a whole trial.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs, self._told = epochs, set[tuple[str, int]]()

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has finished an epoch."""
        name, epoch = Path(trial.config["run"]).name, result.get(TIME)
        if epoch is not None and (name, epoch) not in self._told:
            self._told.add((name, epoch))
            print(
                f"{name}  epoch {epoch}/{self._epochs}  best validation accuracy {result[METRIC]:.4f}",
                flush=True,
            )

    def on_trial_recover(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """A trial's process died, and is started again."""
        print(
            f"{Path(trial.config['run']).name}  was lost: starting again from its last checkpoint", flush=True
        )

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """A trial has ended, or was stopped."""
        run = Run(trial.config["run"])
        settle(run)
        print(f"{run.path.name}  {run.status().get('reason') or 'finished'}", flush=True)

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """A trial is given up."""
        run = Run(trial.config["run"])
        settle(run, _reason(str(trial.get_error() or "")))
        print(f"{run.path.name}  was given up: {run.status().get('reason')}", flush=True)


def _reason(error: str) -> str:
    """The line of a traceback that says what happened."""
    lines = [line.strip() for line in error.splitlines() if line.strip()] or ["its process died"]
    return next((line for line in lines if line.split(":")[0].endswith("Error")), lines[-1])
