"""What a recipe may ask for: optimizer, schedule, stages, early stopping, class weights. Specs and pure functions, no TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from pipelines.errors import ConfigError, suggest
from pipelines.spec import Fraction, Positive, PositiveShare, Ratio, Share, Spec

Count = Annotated[int, Field(ge=0, strict=True)]
Inside = Annotated[float, Field(gt=0.0, lt=1.0, strict=True)]
NotNegative = Annotated[float, Field(ge=0.0, strict=True)]
Patterns = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
]  # one pattern may be written without a list
ClassWeights = Literal["balanced"] | dict[str, float] | None

NO_DECAY = ("*/bias", "*/gamma", "*/beta", "*/scale")
_ADAMS = ("adam", "adamw", "lamb")
_OPTIMIZERS_WITH = {
    "momentum": ("sgd", "rmsprop"),
    "nesterov": ("sgd",),
    "beta_1": (*_ADAMS, "lion"),
    "beta_2": (*_ADAMS, "lion"),
    "epsilon": ("rmsprop", *_ADAMS),
}
_SCHEDULES_WITH = {
    "warmup_steps": ("constant", "cosine", "step"),
    "warmup_epochs": ("constant", "cosine", "step"),
    "end": ("cosine", "one_cycle"),
    "boundaries": ("step",),
    "factor": ("step",),
    "pct_start": ("one_cycle",),
    "div": ("one_cycle",),
}


def _belongs(
    spec: type[Spec], value: Any, info: ValidationInfo, takers: Mapping[str, tuple[str, ...]]
) -> None:
    """Refuses a setting that the chosen `name` has no use for. Its default passes, because a saved configuration holds every field."""
    field, name = str(info.field_name), info.data.get("name")
    if name is not None and name not in takers[field] and value != spec.model_fields[field].default:
        raise ValueError(f"{field} goes with {' and '.join(takers[field])} alone, not with {name}")


class OptimizerSpec(Spec):
    """How weights are updated, as Keras does it. None stands for Keras' own value.

    Attributes:
        name: The Keras optimizer.
        learning_rate: Its step size, which the schedule scales.
        momentum: For `sgd` and `rmsprop`.
        nesterov: Nesterov's momentum, for `sgd`.
        beta_1: Decay of the mean of the gradients; not for `sgd` and `rmsprop`. Keras: 0.9.
        beta_2: Decay of the mean of their squares, for `lion` of the momentum. Keras: 0.999, `lion` 0.99.
        epsilon: Keeps divisions finite; not for `sgd` and `lion`. Keras: 1e-7.
        weight_decay: Decoupled (Loshchilov and Hutter, 2019): before each update w -= learning rate * weight_decay * w, whatever the
            optimizer, so that `adam` with it is `adamw`, and in `lamb` it stays out of the trust ratio. Keras: 0.004 for `adamw`, else 0.
        no_decay: Shell-style patterns of the paths of variables that are not decayed.
        clip_norm: Largest global norm of the gradient, taken over all replicas; None for no limit.
    """

    name: Literal["sgd", "rmsprop", "adam", "adamw", "lamb", "lion"] = "adam"
    learning_rate: Ratio = 1e-3
    momentum: Fraction = 0.0
    nesterov: bool = False
    beta_1: Inside | None = None
    beta_2: Inside | None = None
    epsilon: Ratio | None = None
    weight_decay: NotNegative | None = None
    no_decay: Patterns = NO_DECAY
    clip_norm: Ratio | None = None

    @field_validator(*_OPTIMIZERS_WITH)
    @classmethod
    def _of_this_optimizer(cls, value: Any, info: ValidationInfo) -> Any:
        _belongs(cls, value, info, _OPTIMIZERS_WITH)
        if info.field_name == "nesterov" and value and not info.data.get("momentum"):
            raise ValueError("nesterov needs a momentum above 0")
        return value


class ScheduleSpec(Spec):
    """How the learning rate goes over the updates of a stage, as a factor on its base rate.

    Attributes:
        name: `constant`; `cosine`, from 1 to `end` (Loshchilov and Hutter, 2017); `step`, times `factor` at each boundary; `one_cycle`,
            up from 1 / `div` to 1 and down to `end`, both along a half cosine (Smith and Topin, 2018).
        warmup_steps: Updates before the full rate, during which it rises in equal steps; not for `one_cycle`, which rises by itself.
        warmup_epochs: The same in epochs, parts allowed; only one of the two.
        warmup_from: Factor of the first update of the warmup.
        end: Factor that `cosine` and `one_cycle` approach; the update after the last would have it.
        boundaries: Epochs after which the rate falls, counted from the start of the stage, its warmup included.
        factor: What it is multiplied with there.
        pct_start: Share of the updates before the peak.
        div: Peak over first rate.
    """

    name: Literal["constant", "cosine", "step", "one_cycle"] = "constant"
    warmup_steps: Count = 0
    warmup_epochs: NotNegative = 0.0
    warmup_from: Share = 0.0
    end: Share = 0.0
    boundaries: Annotated[tuple[Positive, ...], Field(validate_default=True)] = ()
    factor: PositiveShare = 0.1
    pct_start: Inside = 0.3
    div: Annotated[float, Field(ge=1.0, strict=True)] = 25.0

    @field_validator(*_SCHEDULES_WITH)
    @classmethod
    def _of_this_schedule(cls, value: Any, info: ValidationInfo) -> Any:
        _belongs(cls, value, info, _SCHEDULES_WITH)
        if info.field_name == "warmup_epochs" and value and info.data.get("warmup_steps"):
            raise ValueError("give warmup_steps or warmup_epochs, not both")
        return value

    @field_validator("boundaries")
    @classmethod
    def _ascending(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if not value and info.data.get("name") == "step":
            raise ValueError("step needs the epochs after which the rate falls, such as [30, 60]")
        if list(value) != sorted(set(value)):
            raise ValueError(f"boundaries ascend, such as {sorted(set(value))}")
        return value


class StageSpec(Spec):
    """Some epochs of a run with a rate, a schedule and a trainable set of their own.

    What is frozen is what the run's `freeze` or the stage's `freeze` names, except what the stage's `train` names. Nothing is carried
    over from the stage before, so that each can be read by itself. How patterns match is told in `service.training.optimizers`.

    Attributes:
        epochs: How many.
        learning_rate: Base rate; None for the optimizer's.
        schedule: Over the updates of this stage; None for the run's, begun anew.
        freeze: Patterns of layers that do not learn here.
        train: Patterns of layers that do, though frozen otherwise.
    """

    epochs: Positive
    learning_rate: Ratio | None = None
    schedule: ScheduleSpec | None = None
    freeze: Patterns = ()
    train: Patterns = ()


class EarlyStoppingSpec(Spec):
    """When a run ends before its last epoch.

    Attributes:
        metric: What has to get better: a loss falls, an accuracy rises.
        patience: Epochs without a new best value.
        min_delta: How much better than the best so far it has to be.
    """

    metric: Literal["val_loss", "val_accuracy", "loss", "accuracy"] = "val_loss"
    patience: Positive = 5
    min_delta: NotNegative = 0.0


def stopped(history: Sequence[Mapping[str, float]], spec: EarlyStoppingSpec) -> bool:
    """Whether training should end after the last epoch of a history.

    It only does so after an epoch that has the metric: one that was not evaluated decides nothing, but its time passes.

    Args:
        history: Metrics per epoch, from the first that counts.
        spec: When to stop.
    """
    sign = 1.0 if spec.metric.endswith("loss") else -1.0
    best, epoch_of_best = math.inf, -1
    for epoch, metrics in enumerate(history):
        value = sign * metrics.get(spec.metric, math.inf)
        if value < best - spec.min_delta:
            best, epoch_of_best = value, epoch
    measured = bool(history) and spec.metric in history[-1]
    return measured and len(history) - 1 - epoch_of_best >= spec.patience


def check_class_weights(value: Any) -> Any:
    """Refuses what is neither `balanced` nor positive numbers by class name; names that YAML reads as numbers become text.

    Raises:
        ValueError: As pydantic's validators do.
    """
    if value is None or value == "balanced":
        return value
    if not isinstance(value, dict):
        raise ValueError("class weights are 'balanced' or a number for each class name, such as {cat: 2.0}")
    for name, weight in value.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"the weight of the class {name} is a number above 0, not {weight!r}")
    return {str(name): float(weight) for name, weight in value.items()}


def class_weight_table(spec: ClassWeights, classes: Sequence[str], counts: Sequence[int]) -> np.ndarray:
    """The factor on the loss for each class.

    Args:
        spec: `balanced`: n images of k classes weigh n / (k * count) each, so that all classes weigh the same and an image 1 on average; a
            class without images takes no part. Or factors by class name, 1 for the others; or None for 1 everywhere.
        classes: Names, in the order of their numbers.
        counts: Training images of each.

    Returns:
        float32 `[classes]`.

    Raises:
        ConfigError: A factor for a class that is not there.
    """
    if spec == "balanced":
        of = np.asarray(counts, np.float64)
        weights = of.sum() / (np.count_nonzero(of) * np.maximum(of, 1.0))
        return np.where(of > 0, weights, 1.0).astype(np.float32)
    factors = spec or {}
    for name in factors:
        if name not in classes:
            raise ConfigError(
                "the name of a class", f"class_weights.{name}={factors[name]}", suggest(name, classes)
            )
    return np.array([factors.get(name, 1.0) for name in classes], np.float32)
