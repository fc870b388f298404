"""Where the metrics of an epoch go besides the run directory: TensorBoard events, and MLflow where it is in use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tensorboardX import SummaryWriter

from pipelines.errors import ConfigError
from service.config import RunConfig
from service.runs import Run

WriteEpoch = Callable[[dict[str, float]], None]
CURVES = {
    "train": ("loss", "accuracy", "top5", "learning_rate", "images_per_second", "input_wait"),
    "validation": ("val_loss", "val_accuracy", "val_top5", "val_auc"),
}
TRACKER = "MLFLOW_TRACKING_URI"


@contextmanager
def epoch_log(config: RunConfig, run: Run, validation: bool) -> Iterator[WriteEpoch]:
    """Yields what logs the metrics of an epoch, all of it on its way when it returns.

    Args:
        config: Of the run.
        run: Where the events go.
        validation: Whether the run has a validation split.

    Raises:
        ConfigError: An MLflow server is named, and MLflow is not installed.
    """
    with ExitStack() as stack:
        splits = list(CURVES) if validation else ["train"]
        writers = {split: stack.enter_context(SummaryWriter(str(run.events / split))) for split in splits}
        track = stack.enter_context(_tracked(config, run)) if os.environ.get(TRACKER) else None

        def write(metrics: dict[str, float]) -> None:
            for split, writer in writers.items():
                for name in CURVES[split]:
                    if name in metrics:
                        writer.add_scalar(name.removeprefix("val_"), metrics[name], int(metrics["epoch"]))
                writer.flush()
            if track:
                track(metrics)

        yield write


@contextmanager
def _tracked(config: RunConfig, run: Run) -> Iterator[WriteEpoch]:
    """Logs to the MLflow run of this run's name, and goes on with it where there is one."""
    try:
        import mlflow
    except ImportError:
        raise ConfigError(
            "MLflow where its server is named", f"{TRACKER}={os.environ[TRACKER]}", "install glassbox[mlflow]"
        ) from None
    client = mlflow.MlflowClient()
    experiment = mlflow.set_experiment("glassbox").experiment_id
    known = client.search_runs([experiment], f"tags.glassbox_run = '{run.path}'", max_results=1)
    ours = (
        known[0]
        if known
        else client.create_run(experiment, tags={"glassbox_run": str(run.path)}, run_name=run.path.name)
    ).info.run_id
    if not known:
        for name, value in _flat(config.model_dump(mode="json")):
            client.log_param(ours, name, value)

    def write(metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            client.log_metric(ours, name, value, step=int(metrics["epoch"]))

    try:
        yield write
    except BaseException:
        client.set_terminated(ours, "FAILED")
        raise
    client.set_terminated(ours, "FINISHED")


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as `a.b` names and values."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
