"""What stops a run: settings that cannot be followed, and a training that has gone wrong."""

from __future__ import annotations

import math

from pipelines.errors import ConfigError, TrainingError
from service.config import RunConfig


def check_measured(config: RunConfig, validation: bool) -> None:
    """Makes sure that early stopping looks at something that is measured.

    Args:
        config: Of the run.
        validation: Whether there is a validation split.

    Raises:
        ConfigError: There is no validation split.
    """
    metric = config.early_stopping.metric if config.early_stopping else ""
    if metric.startswith("val_") and not validation:
        raise ConfigError(
            "a metric that is measured",
            f"early_stopping.metric={metric} (no validation split)",
            "use loss or accuracy",
        )


def check_learned(epoch: int, skipped: int, updates: int) -> None:
    """Stops a run that leaves out every update: it would do so for ever.

    Raises:
        TrainingError: No update of the epoch had a finite gradient.
    """
    if skipped == updates:
        fix = "lower optimizer.learning_rate, or look at the images with glassbox shards verify"
        raise TrainingError(
            "an epoch with a finite gradient", f"epoch={epoch} skipped={skipped} (every update)", fix
        )


def check_finite(metrics: dict[str, float]) -> None:
    """Stops a run that has diverged before it overwrites anything good.

    Raises:
        TrainingError: A loss is infinite or not a number.
    """
    for name in ("loss", "val_loss"):
        if not math.isfinite(metrics.get(name, 0.0)):
            fix = "lower optimizer.learning_rate; what was saved before is still there"
            raise TrainingError("a finite loss", f"epoch={metrics['epoch']} {name}={metrics[name]}", fix)
