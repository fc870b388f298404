"""Writes the metrics of each epoch to TensorBoard events, and to MLflow if it is configured."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError
from service.config import RunConfig
from service.runs import Run

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

WriteEpoch = Callable[[dict[str, float]], None]
CURVES = {
    "train": ("loss", "accuracy", "top5", "learning_rate", "images_per_second", "input_wait"),
    "validation": ("val_loss", "val_accuracy", "val_top5", "val_auc"),
}
TRACKING_URI = "MLFLOW_TRACKING_URI"


@contextmanager
def open_epoch_log(config: RunConfig, run: Run, has_validation: bool) -> Iterator[WriteEpoch]:
    """Yields a function that logs the metrics of an epoch; they are flushed when it returns.

    Args:
        config: Configuration of the run, whose values MLflow receives as parameters.
        run: Run directory that receives the events.
        has_validation: Whether the run has a validation split.

    Raises:
        ConfigError: An MLflow server is configured, but MLflow is not installed.
    """
    from tensorboardX import SummaryWriter

    splits = list(CURVES) if has_validation else ["train"]
    with ExitStack() as stack:
        writers = {split: stack.enter_context(SummaryWriter(str(run.events / split))) for split in splits}
        track = stack.enter_context(_open_mlflow_run(config, run)) if os.environ.get(TRACKING_URI) else None

        def write(metrics: dict[str, float]) -> None:
            for split, writer in writers.items():
                _write_scalars(writer, CURVES[split], metrics)
            if track:
                track(metrics)

        yield write


def _write_scalars(writer: SummaryWriter, names: tuple[str, ...], metrics: dict[str, float]) -> None:
    for name in names:
        if name in metrics:
            writer.add_scalar(name.removeprefix("val_"), metrics[name], int(metrics["epoch"]))
    writer.flush()


@contextmanager
def _open_mlflow_run(config: RunConfig, run: Run) -> Iterator[WriteEpoch]:
    """Yields a function that logs to the MLflow run with the tag of this run's location, old or new."""
    try:
        import mlflow
    except ImportError:
        raise ConfigError(
            "MLflow where its server is configured",
            f"{TRACKING_URI}={os.environ[TRACKING_URI]}",
            "install it with: pip install -e '.[mlflow]'",
        ) from None
    client = mlflow.MlflowClient()
    experiment = mlflow.set_experiment("glassbox").experiment_id
    location = find_location(run)
    existing = client.search_runs([experiment], f"tags.glassbox_run = '{location}'", max_results=1)
    if existing:
        run_id = existing[0].info.run_id
    else:
        tags = {"glassbox_run": location}
        run_id = client.create_run(experiment, tags=tags, run_name=run.path.name).info.run_id
        for name, value in _flatten(config.model_dump(mode="json")):
            client.log_param(run_id, name, value)

    def write(metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            client.log_metric(run_id, name, value, step=int(metrics["epoch"]))

    try:
        yield write
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


def find_location(run: Run) -> str:
    """Returns where others find a run: its address if it is on a store, else its directory."""
    return str(run.status().get("mirror", {}).get("uri") or run.path)


def _flatten(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields nested settings as names like `a.b`, and their values."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
