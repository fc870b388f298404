"""Computes the learning rate of every update of a run, as a table. Needs NumPy only."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

import numpy as np

from pipelines.errors import ConfigError
from service.config import RunConfig
from service.recipe import UNSCALED, ScheduleSpec, StageSpec, format_epochs


def updates_per_epoch(steps: int, accumulate: int) -> int:
    """Returns the optimizer updates of an epoch; the remaining batches at its end form the last update.

    Args:
        steps: Number of batches in an epoch.
        accumulate: Number of batches per update.
    """
    return math.ceil(steps / accumulate)


@dataclass(frozen=True)
class Stage:
    """A stage of a run with all its settings resolved.

    Attributes:
        first: The first epoch of the stage, from 1.
        epochs: Number of epochs in the stage.
        learning_rate: Base learning rate of the stage, scaled by the batch.
        schedule: Learning rate schedule over the updates of the stage; `warmup_from` is a number.
        freeze: Patterns of layers that do not learn; those of the run come first.
        train: Patterns of layers that learn although `freeze` matches them.
    """

    first: int
    epochs: int
    learning_rate: float
    schedule: ScheduleSpec
    freeze: tuple[str, ...]
    train: tuple[str, ...]


def list_stages(config: RunConfig) -> tuple[Stage, ...]:
    """Returns the stages of a run in order; a run without stages is a single one.

    Args:
        config: Configuration of the run.
    """
    stages: list[Stage] = []
    first = 1
    scale = config.optimizer.scale_learning_rate(config.images_per_update)
    for spec in config.stages or (StageSpec(epochs=config.epochs),):
        stages.append(
            Stage(
                first=first,
                epochs=spec.epochs,
                learning_rate=scale * (spec.learning_rate or config.optimizer.learning_rate),
                schedule=_resolve_warmup(spec.schedule or config.schedule, scale),
                freeze=(*config.freeze, *spec.freeze),
                train=spec.train,
            )
        )
        first += spec.epochs
    return tuple(stages)


def _resolve_warmup(spec: ScheduleSpec, scale: float) -> ScheduleSpec:
    """Returns the schedule with the factor that its warmup starts from, at most 1."""
    if spec.warmup_from != UNSCALED:
        return spec
    return spec.model_copy(update={"warmup_from": min(1.0, 1.0 / scale)})


def find_stage(stages: tuple[Stage, ...], epoch: int) -> int:
    """Returns the index of the stage that an epoch, counted from 1, belongs to."""
    return bisect.bisect_right([stage.first for stage in stages], epoch) - 1


def run_rates(config: RunConfig, updates: int) -> np.ndarray:
    """Returns the learning rates of a whole run, one stage after the other.

    Args:
        config: Configuration of the run.
        updates: Number of updates in an epoch (`updates_per_epoch`).

    Returns:
        float32 `[epochs * updates]`, by the number of the update from 0.

    Raises:
        ConfigError: A warmup is as long as its stage or longer.
    """
    rates = [
        learning_rates(stage.schedule, stage.learning_rate, updates, stage.epochs)
        for stage in list_stages(config)
    ]
    return np.concatenate(rates)


def learning_rates(spec: ScheduleSpec, base_rate: float, updates_per_epoch: int, epochs: int) -> np.ndarray:
    """Returns the learning rate of every update of a stage.

    With u the number of the update, U the number of updates and W that of the warmup, the factor on the base
    rate is

    - warmup: `from + (1 - from) * u / W` for u < W, so that update W is the first with the full rate;
    - cosine: `end + (1 - end) * (1 + cos(pi * (u - W) / (U - W))) / 2`;
    - step: `factor` to the power of the number of boundaries b with u >= b * updates_per_epoch;
    - one_cycle, with the peak at update P = round(pct_start * U): a half cosine from 1 / div to 1 up to P,
      another from 1 to end at U.

    Args:
        spec: Schedule and its parameters.
        base_rate: Learning rate that the factor applies to.
        updates_per_epoch: Number of updates in an epoch.
        epochs: Number of epochs in the stage.

    Returns:
        float32 `[epochs * updates_per_epoch]`, by the number of the update from 0.

    Raises:
        ConfigError: The warmup is as long as the stage or longer.
    """
    updates = epochs * updates_per_epoch
    u = np.arange(updates, dtype=np.float64)
    warmup = _count_warmup_updates(spec, updates_per_epoch, updates)
    if spec.name == "one_cycle":
        peak = round(spec.pct_start * updates)
        rise = _half_cosine(1.0 / spec.div, 1.0, u, peak)
        fall = _half_cosine(1.0, spec.end, u - peak, updates - peak)
        factor = np.where(u < peak, rise, fall)
    elif spec.name == "cosine":
        factor = _half_cosine(1.0, spec.end, u - warmup, updates - warmup)
    elif spec.name == "step":
        boundaries = np.array(spec.boundaries) * updates_per_epoch
        factor = spec.factor ** np.searchsorted(boundaries, u, side="right")
    else:
        factor = np.ones(updates)
    start = float(spec.warmup_from)
    ramp = start + (1.0 - start) * u / max(1, warmup)
    return np.asarray(base_rate * np.where(u < warmup, ramp, factor), np.float32)


def _half_cosine(start: float, end: float, u: np.ndarray, length: int) -> np.ndarray:
    """Computes half a cosine from `start` at u = 0 to `end` at u = `length`; undefined outside."""
    return start + (end - start) * (1.0 - np.cos(np.pi * u / max(1, length))) / 2.0


def _count_warmup_updates(spec: ScheduleSpec, updates_per_epoch: int, updates: int) -> int:
    setting = "warmup_steps" if spec.warmup_steps else "warmup_epochs"
    warmup = spec.warmup_steps or round(spec.warmup_epochs * updates_per_epoch)
    if warmup >= updates:
        epochs = updates // updates_per_epoch
        raise ConfigError(
            "a warmup shorter than the training",
            f"schedule.{setting}={getattr(spec, setting)}",
            f"warm up for fewer than {updates} updates ({format_epochs(epochs)}), or train longer",
        )
    return warmup
