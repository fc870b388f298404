"""The run directory: the only code that knows its layout.

runs/<name>/config.yaml  metrics.jsonl  events/  checkpoints/  model.keras  status.json  report/
"""

from __future__ import annotations

import fcntl
import json
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import ConfigError
from pipelines.storage import lock_file, replace_file, write_atomically

STOP = ".stop"
GOING_ON = ("starting", "training")


class StoppedError(Exception):
    """Training ended early and whole, because it was asked to; the message is the reason."""


class Run:
    """One run directory.

    Args:
        path: The directory; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.config_path = self.path / "config.yaml"
        self.metrics_path = self.path / "metrics.jsonl"
        self.status_path = self.path / "status.json"
        self.model_path = self.path / "model.keras"
        self.events = self.path / "events"
        self.checkpoints = self.path / "checkpoints"
        self.report = self.path / "report"
        self.profile = self.events / "profile"
        self.ray_storage = self.path / ".ray"

    def create(self, config: dict[str, Any]) -> None:
        """Makes the directory with its config.

        Raises:
            ConfigError: Something stands there already, or it cannot be written.
        """
        self.check_free()
        try:
            self.checkpoints.mkdir(parents=True)
            write_atomically(self.config_path, yaml.safe_dump(config, sort_keys=False))
        except OSError as error:
            raise ConfigError(
                "an output that can be written", f"out={self.path}: {error.strerror}", "choose another --out"
            ) from None

    def check_free(self) -> None:
        """Makes sure that nothing stands there yet.

        Raises:
            ConfigError: Something does.
        """
        if self.config_path.is_file():
            fix = "continue it with 'glassbox train --resume', choose another --out or remove it"
            raise ConfigError("an output that does not exist yet", f"out={self.path} (a run)", fix)
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ConfigError(
                "an output that does not exist yet", f"out={self.path}", "choose another --out or remove it"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps everybody else from training this run; the lock ends with the process, however it ends.

        Raises:
            ConfigError: Another process trains it.
        """
        refusal = ConfigError(
            "a run that nobody is training", f"out={self.path}", "wait until it ends, or stop it"
        )
        with lock_file(self.path / ".lock", refusal):
            yield

    def _is_locked(self) -> bool:
        """Whether some process trains this run; looks without getting into its way for longer than a moment."""
        try:
            with (self.path / ".lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def config(self) -> dict[str, Any]:
        """The configuration the run was started with.

        Raises:
            ConfigError: This is no run directory, or its configuration is damaged.
        """
        if not self.config_path.is_file():
            raise ConfigError(
                "a run directory", f"run={self.path} (no config.yaml)", "name the --out of a 'glassbox train'"
            )
        try:
            return dict(yaml.safe_load(self.config_path.read_text()))
        except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError):
            raise ConfigError(
                "a configuration in YAML", f"run={self.path} (config.yaml is damaged)", "start a new run"
            ) from None

    def metrics(self) -> list[dict[str, float]]:
        """One entry per finished epoch, oldest first.

        Keys: epoch (from 1), loss, accuracy, val_loss, val_accuracy (where there is a validation
        split), learning_rate, seconds, images_per_second, input_wait (share of the time, 0 to 1).
        """
        if not self.metrics_path.is_file():
            return []
        return [json.loads(line) for line in self.metrics_path.read_text().splitlines()]

    def write_metrics(self, epochs: Sequence[dict[str, float]]) -> None:
        """Replaces the metrics by these epochs: a line each, whole or not at all."""
        write_atomically(
            self.metrics_path, "".join(json.dumps(epoch, allow_nan=False) + "\n" for epoch in epochs)
        )

    def request_stop(self, reason: str) -> None:
        """Asks the workers to save where they are and to end."""
        write_atomically(self.path / STOP, reason, durable=False)  # never seen without its reason

    def withdraw_stop(self) -> None:
        """Takes the request back."""
        (self.path / STOP).unlink(missing_ok=True)

    def stop_requested(self) -> str | None:
        """Why the workers shall end; None where they shall not."""
        try:
            return (self.path / STOP).read_text()
        except OSError:
            return None

    def notice(self, text: str) -> None:
        """Adds a sentence to what the user is told, once, while the run goes on."""
        self.update_status(notices=[*self.status().get("notices", []), text])

    def status(self) -> dict[str, Any]:
        """What is known of the run's state; empty before it started.

        Keys: state ("starting", "training", "finished", "interrupted", "failed"), reason, progress, caches, notices, timings
        (seconds), environment.
        """
        try:
            return dict(json.loads(self.status_path.read_text()))
        except (
            FileNotFoundError,
            ValueError,
        ):  # not there, or lost with the machine's power: it is not flushed
            return {}

    def state(self) -> str:
        """The state as the status has it, but "interrupted" where it was the machine here that trained and nobody does any more.

        A process that is killed cannot say so; its lock ends with it.
        """
        status = self.status()
        state = str(status.get("state", ""))
        here = (
            status.get("environment", {}).get("host") == platform.node()
        )  # locks may not reach other machines
        return "interrupted" if state in GOING_ON and here and not self._is_locked() else state

    def update_status(self, **changes: Any) -> None:
        """Changes some entries of the status. One process at a time: the driver before and after the worker.

        Not flushed to disk: training must not wait for it.
        """
        write_atomically(
            self.status_path, json.dumps(self.status() | changes, indent=2) + "\n", durable=False
        )

    def add_timings(self, **seconds: float) -> None:
        """Adds the seconds of some phases to the timings in the status."""
        self.update_status(timings=self.status().get("timings", {}) | seconds)

    def exists(self) -> bool:
        """Whether the directory holds a run."""
        return self.config_path.is_file()

    def has_checkpoints(self) -> bool:
        """Whether anything has been saved."""
        return any(self.checkpoints.iterdir())

    def remove(self) -> None:
        """Removes the whole directory."""
        shutil.rmtree(self.path)

    def remove_ray_storage(self) -> None:
        """Removes what Ray Train stores for itself while it trains."""
        shutil.rmtree(self.ray_storage, ignore_errors=True)

    def write_model(self, save: Callable[[Path], None]) -> None:
        """Replaces the model file, whole or not at all.

        Args:
            save: Saves a model to a path that ends in `.keras`.
        """
        with replace_file(self.model_path) as temporary:
            save(temporary)

    def append_rows(self, rank: int, lines: Sequence[str]) -> None:
        """Appends lines to the log of the rows that a worker has trained on (see `RowLog`)."""
        with (self.path / f"rows-{rank}.log").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)


def score(metrics: dict[str, float], history: Sequence[dict[str, float]] = ()) -> float:
    """What the best epoch is chosen by: validation accuracy, or training accuracy without a validation split.

    Args:
        metrics: Of an epoch.
        history: Of all epochs: where some were evaluated, those that were not score -1.
    """
    if "val_accuracy" in metrics:
        return metrics["val_accuracy"]
    return -1.0 if any("val_accuracy" in other for other in history) else metrics["accuracy"]
