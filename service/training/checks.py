"""Checks that stop a run: invalid settings, and training that has diverged."""

from __future__ import annotations

import math

from pipelines.errors import ConfigError, TrainingError
from service.config import RunConfig


def check_stopping_metric(config: RunConfig, has_validation: bool) -> None:
    """Checks that the metric of early stopping is measured.

    Args:
        config: Configuration of the run.
        has_validation: Whether the shard set has a validation split.

    Raises:
        ConfigError: The metric needs a validation split, and there is none.
    """
    metric = config.early_stopping.metric if config.early_stopping else ""
    if metric.startswith("val_") and not has_validation:
        raise ConfigError(
            "a metric that is measured",
            f"early_stopping.metric={metric} (no validation split)",
            "use loss or accuracy",
        )


def check_some_updates(epoch: int, skipped: int, updates: int) -> None:
    """Stops a run that skips every update, because it would never learn anything.

    Args:
        epoch: The epoch that was trained, from 1.
        skipped: Number of its updates that were skipped.
        updates: Number of all its updates.

    Raises:
        TrainingError: No update of the epoch had a finite gradient.
    """
    if skipped == updates:
        fix = "lower optimizer.learning_rate, or check the images with glassbox shards verify"
        raise TrainingError(
            "an epoch with a finite gradient", f"epoch={epoch} skipped={skipped} (every update)", fix
        )


def check_finite_losses(metrics: dict[str, float]) -> None:
    """Stops a run that has diverged before it overwrites an intact checkpoint.

    Args:
        metrics: Metrics of an epoch.

    Raises:
        TrainingError: A loss is infinite or not a number.
    """
    for name in ("loss", "val_loss"):
        if not math.isfinite(metrics.get(name, 0.0)):
            fix = "lower optimizer.learning_rate; earlier checkpoints are intact"
            raise TrainingError("a finite loss", f"epoch={metrics['epoch']} {name}={metrics[name]}", fix)
