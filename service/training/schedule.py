"""The learning rate of every update of a run, as a table. Pure NumPy."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

import numpy as np

from pipelines.errors import ConfigError
from service.config import RunConfig
from service.recipe import ScheduleSpec, StageSpec


def updates_per_epoch(steps: int, accumulate: int) -> int:
    """Optimizer updates of an epoch; what is left over at its end makes an update of its own.

    Args:
        steps: Batches of an epoch.
        accumulate: Batches per update.
    """
    return math.ceil(steps / accumulate)


@dataclass(frozen=True)
class Stage:
    """A stage of a run with nothing left open.

    Attributes:
        first: Its first epoch, from 1.
        epochs: How many.
        learning_rate: Base rate.
        schedule: Over its updates.
        freeze: Patterns of layers that do not learn; the run's own come first.
        train: Patterns of layers that do, though frozen otherwise.
    """

    first: int
    epochs: int
    learning_rate: float
    schedule: ScheduleSpec
    freeze: tuple[str, ...]
    train: tuple[str, ...]


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """The stages of a run in their order; a run without any is one."""
    stages, first = [], 1
    for spec in config.stages or (StageSpec(epochs=config.epochs),):
        rate, schedule = (
            spec.learning_rate or config.optimizer.learning_rate,
            spec.schedule or config.schedule,
        )
        stages.append(Stage(first, spec.epochs, rate, schedule, (*config.freeze, *spec.freeze), spec.train))
        first += spec.epochs
    return tuple(stages)


def stage_at(stages: tuple[Stage, ...], epoch: int) -> int:
    """The index of the stage that an epoch, counted from 1, belongs to."""
    return bisect.bisect_right([stage.first for stage in stages], epoch) - 1


def run_rates(config: RunConfig, steps_per_epoch: int) -> np.ndarray:
    """The learning rates of a whole run, one stage after the other.

    Args:
        config: Of the run.
        steps_per_epoch: Updates of an epoch (`updates_per_epoch`).

    Returns:
        float32 `[updates]`, by the number of the update from 0.

    Raises:
        ConfigError: A warmup as long as its stage or longer.
    """
    return np.concatenate(
        [learning_rates(s.schedule, s.learning_rate, steps_per_epoch, s.epochs) for s in stages_of(config)]
    )


def learning_rates(spec: ScheduleSpec, optimizer_lr: float, steps_per_epoch: int, epochs: int) -> np.ndarray:
    """The learning rate of every update of a stage.

    With u the number of the update, U of them in all and W in the warmup, the factor on the base rate is

    - warmup: `from + (1 - from) * u / W` for u < W, so that update W is the first with the full rate;
    - cosine: `end + (1 - end) * (1 + cos(pi * (u - W) / (U - W))) / 2`;
    - step: `factor` to the power of the number of boundaries b with u >= b * steps_per_epoch;
    - one_cycle, with the peak at update P = round(pct_start * U): a half cosine from 1 / div to 1 up to P, another from 1 to end at U.

    Args:
        spec: The schedule.
        optimizer_lr: Base rate.
        steps_per_epoch: Updates of an epoch (`updates_per_epoch`).
        epochs: Of the stage.

    Returns:
        float32 `[epochs * steps_per_epoch]`, by the number of the update from 0.

    Raises:
        ConfigError: A warmup as long as the stage or longer.
    """
    updates = epochs * steps_per_epoch
    u = np.arange(updates, dtype=np.float64)
    warmup = _warmup_updates(spec, steps_per_epoch, updates)
    if spec.name == "one_cycle":
        peak = round(spec.pct_start * updates)
        factor = np.where(
            u < peak,
            _half_cosine(1.0 / spec.div, 1.0, u, peak),
            _half_cosine(1.0, spec.end, u - peak, updates - peak),
        )
    elif spec.name == "cosine":
        factor = _half_cosine(1.0, spec.end, u - warmup, updates - warmup)
    elif spec.name == "step":
        factor = spec.factor ** np.searchsorted(np.array(spec.boundaries) * steps_per_epoch, u, side="right")
    else:
        factor = np.ones(updates)
    ramp = spec.warmup_from + (1.0 - spec.warmup_from) * u / max(1, warmup)
    return np.asarray(optimizer_lr * np.where(u < warmup, ramp, factor), np.float32)


def _half_cosine(start: float, end: float, u: np.ndarray, length: int) -> np.ndarray:
    """From `start` at u = 0 to `end` at u = `length`; of no use outside."""
    return start + (end - start) * (1.0 - np.cos(np.pi * u / max(1, length))) / 2.0


def _warmup_updates(spec: ScheduleSpec, steps_per_epoch: int, updates: int) -> int:
    name = "warmup_steps" if spec.warmup_steps else "warmup_epochs"
    warmup = spec.warmup_steps or round(spec.warmup_epochs * steps_per_epoch)
    if warmup >= updates:
        fix = (
            f"warm up for fewer than {updates} updates ({updates // steps_per_epoch} epochs), or train longer"
        )
        raise ConfigError("a warmup shorter than the training", f"schedule.{name}={getattr(spec, name)}", fix)
    return warmup
