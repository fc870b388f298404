"""Training runs: configure, train, resume and load them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.errors import ConfigError
from pipelines.remote.files import resolve_location
from pipelines.remote.uri import Location, Uri
from pipelines.text import escape_html
from service.config import RunConfig
from service.config import load_config as load_run_config
from service.failures import translate_failures
from service.runs import Run

if TYPE_CHECKING:
    import keras
    import pyarrow as pa


class TrainedRun:
    """A run directory: its metrics, configuration, status and model.

    For a run on a store, every access fetches the current content.

    Args:
        path: The run directory, or its URI.

    Raises:
        ConfigError: The directory is not a run, or the scheme of the URI is unknown.
    """

    def __init__(self, path: str | os.PathLike[str] | Uri) -> None:
        self._location = resolve_location(path)
        self._open("config").config()  # raises if this is not a run

    def _open(self, part: str) -> Run:
        """Returns the run, or a local copy of a run on a store with an up-to-date part."""
        if isinstance(self._location, Path):
            return Run(self._location)

        from service.mirror.fetch import fetch_run

        return fetch_run(self._location, (part,))

    def __fspath__(self) -> str:
        return str(self._location)

    def __repr__(self) -> str:
        epochs = len(self._open("metrics").metrics())
        return f"TrainedRun({str(self._location)!r}, state={self.state!r}, epochs={epochs})"

    @property
    def path(self) -> Location:
        """Path of the run directory, or its URI."""
        return self._location

    @property
    def state(self) -> str:
        """State of the run: `starting`, `training`, `finished`, `interrupted` or `failed`."""
        return self._open("status").state()

    @property
    def config(self) -> dict[str, Any]:
        """The configuration the run was started with."""
        return self._open("config").config()

    @property
    def status(self) -> dict[str, Any]:
        """State, reason, timings in seconds, caches and environment."""
        return self._open("status").status()

    def metrics(self) -> pa.Table:
        """Returns the metrics as an Arrow table with one row per epoch.

        Columns: `epoch` (from 1), `loss`, `accuracy`, `val_loss` and `val_accuracy` (null if not evaluated),
        `learning_rate`, `seconds`, `images_per_second`, `input_wait` (share of the time, 0 to 1).
        `.to_pandas()` requires pandas.
        """
        import pyarrow as pa

        epochs = self._open("metrics").metrics()
        names = list(dict.fromkeys(name for epoch in epochs for name in epoch))
        return pa.table({name: [epoch.get(name) for epoch in epochs] for name in names})

    def model(self) -> keras.Model:
        """Loads the model of the best epoch."""
        from .models import load_model

        return load_model(self)

    def report(self, **options: Any) -> Location:
        """Renders the HTML report of the run; see `glassbox.report`."""
        from .reports import report

        return report(self, **options)

    def export(
        self, format: str = "savedmodel", out: str | os.PathLike[str] | Uri | None = None, **options: Any
    ) -> Location:
        """Exports the model of the best epoch; see `glassbox.export`."""
        from .models import export

        return export(self, format, out, **options)

    def _repr_html_(self) -> str:
        title = f"<b>{escape_html(self.path.name)}</b> ({escape_html(self.state)})"
        epochs = self._open("metrics").metrics()
        if not epochs:
            return title
        names = [name for name in ("loss", "accuracy", "val_loss", "val_accuracy") if name in epochs[-1]]
        header = "".join(f"<th>{name}</th>" for name in ("epoch", *names))
        rows = []
        for epoch in epochs[-MAX_HTML_EPOCHS:]:
            cells = "".join(f"<td>{epoch.get(name, float('nan')):.4f}</td>" for name in names)
            rows.append(f"<tr><td>{int(epoch['epoch'])}</td>{cells}</tr>")
        return f"{title}<table><tr>{header}</tr>{''.join(rows)}</table>"


MAX_HTML_EPOCHS = 20  # number of newest epochs in the table of a notebook


def load_config(
    preset: str,
    data: str | os.PathLike[str] | Uri,
    overrides: Mapping[str, Any] | None = None,
    **settings: Any,
) -> RunConfig:
    """Composes the configuration of a run.

    Args:
        preset: Name of a preset (`glassbox presets` lists them), or path or URI of a YAML file.
        data: Shard set, or path or URI of one.
        overrides: Settings by dotted key, such as `{"optimizer.learning_rate": 0.01, "data.image_size": 96}`.
        settings: Top-level settings, such as `epochs=5` or `model="my_model.py:build"`.

    Raises:
        ConfigError: The preset or a key is unknown, or a value has the wrong type.
    """
    changes = {**(overrides or {}), **settings}
    lines = [f"{key}={json.dumps(value, default=_to_plain)}" for key, value in changes.items()]
    return load_run_config(preset, resolve_location(data), lines)


@translate_failures()
def train(
    config: RunConfig | str,
    data: str | os.PathLike[str] | Uri | None = None,
    out: str | os.PathLike[str] | Uri = "run",
    *,
    local: bool = False,
    workers: int | str | None = None,
    cpus_per_worker: int | None = None,
    gpus_per_worker: int | None = None,
    **settings: Any,
) -> TrainedRun:
    """Trains a new run. Shows a progress bar.

    Args:
        config: A configuration from `load_config`, or the name of a preset.
        data: Shard set, or path or URI of one, with the name of a preset.
        out: Path or URI of the run directory to create.
        local: Train in this process without Ray, which starts within seconds; the weights are the same to the
            bit as with one Ray worker on the same machine.
        workers: Worker processes, or `"MIN:MAX"`; None for one with the whole of the largest node.
        cpus_per_worker: CPUs of each worker; None for an even share of the cluster.
        gpus_per_worker: GPUs of each worker; None for an even share of the cluster.
        settings: Top-level settings, with the name of a preset: `epochs=5`.

    Returns:
        The finished run.

    Raises:
        ConfigError: A setting is invalid, or `out` exists.
        DataError: The shard set cannot be used.
        TrainingError: Training started and could not finish; `resume` continues it.
    """
    from service.training.launch import train as train_run

    if isinstance(config, str):
        if data is None:
            raise ConfigError("a shard set with the name of a preset", "data=None", "pass data=")
        config = load_config(config, data, **settings)
    elif data is not None or settings:
        raise ConfigError(
            "a configuration alone, or the name of a preset with data and settings",
            f"config={type(config).__name__} with data or settings",
            "change the configuration with load_config",
        )
    spec = _read_workers(workers, cpus_per_worker, gpus_per_worker)
    location = resolve_location(out)
    train_run(config, str(location), spec, local=local)
    return TrainedRun(location)


@translate_failures()
def resume(
    run: str | os.PathLike[str] | Uri,
    *,
    local: bool = False,
    workers: int | str | None = None,
    cpus_per_worker: int | None = None,
    gpus_per_worker: int | None = None,
) -> TrainedRun:
    """Resumes a run from its newest checkpoint with its own configuration; a finished run is left alone.

    Args:
        run: Path or URI of the run directory.
        local: Continue in this process without Ray, whichever way the run was started.
        workers: Worker processes, or `"MIN:MAX"`; None for as many as before.
        cpus_per_worker: CPUs of each worker.
        gpus_per_worker: GPUs of each worker.

    Raises:
        GlassboxError: A mistake that the user can correct; the checkpoints are kept.
    """
    from service.training.launch import resume as resume_run

    spec = _read_workers(workers, cpus_per_worker, gpus_per_worker)
    location = resolve_location(run)
    resume_run(str(location), spec, local=local)
    return TrainedRun(location)


def load_run(path: str | os.PathLike[str] | Uri) -> TrainedRun:
    """Opens a run directory, finished or not.

    Args:
        path: The run directory, or its URI, such as `s3://BUCKET/runs/first`.

    Raises:
        ConfigError: The directory is not a run.
    """
    return TrainedRun(path)


def _to_plain(value: Any) -> Any:
    """Converts a path or a NumPy value to what JSON can hold."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise ConfigError("a plain value", f"{value!r} ({type(value).__name__})", "pass numbers, texts and lists")


def _read_workers(workers: int | str | None, cpus: int | None, gpus: int | None) -> Any:
    """Returns the requested `WorkerSpec`; None if no option is set."""
    if workers is None and cpus is None and gpus is None:
        return None
    from service.training.group import WorkerSpec

    return WorkerSpec.read(None if workers is None else str(workers), cpus, gpus, None)
