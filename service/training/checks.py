"""Decides when a run ends: after its last epoch, by early stopping, or because it has diverged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipelines.errors import ConfigError, TrainingError
from service.config import RunConfig
from service.recipe import find_last_improvement, should_stop
from service.training.schedule import list_stages

EARLY_STOP = "stopped early"  # start of the sentence about an early stop


def describe_end(config: RunConfig, history: Sequence[Mapping[str, float]]) -> str | None:
    """Returns the sentence about the end of a run; None if a configuration has epochs left to train.

    Args:
        config: Configuration of the run, which may have changed since the epochs were trained.
        history: Metrics of every finished epoch, oldest first.
    """
    if len(history) >= config.epochs:
        if config.epochs == 1:
            return "its only epoch is trained"
        return f"all {config.epochs} epochs are trained"
    return describe_early_stop(config, history)


def describe_early_stop(config: RunConfig, history: Sequence[Mapping[str, float]]) -> str | None:
    """Returns the sentence about an early stop after the last epoch of a history; None if there is none.

    Only the last stage of a run can be stopped early.

    Args:
        config: Configuration of the run.
        history: Metrics of every finished epoch, oldest first.
    """
    spec = config.early_stopping
    first = list_stages(config)[-1].first
    epochs = history[first - 1 :]
    if spec is None or len(history) >= config.epochs or not should_stop(epochs, spec):
        return None
    stop = f"{EARLY_STOP} after epoch {len(history)} of {config.epochs}"
    best_index = find_last_improvement(epochs, spec)
    if best_index is None:
        return f"{stop}: {spec.metric} was not finite"
    least = f" by more than {spec.min_delta:g}" if spec.min_delta else ""
    best = epochs[best_index][spec.metric]
    return f"{stop}: {spec.metric} has not improved{least} since epoch {first + best_index} ({best:.4f})"


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
