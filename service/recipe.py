"""Settings for training: optimizer, schedule, stages, early stopping, class weights. No TensorFlow."""

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
# A single pattern may be written without a list.
Patterns = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
]
ClassWeights = Literal["balanced"] | dict[str, float] | None

NO_DECAY = ("*/bias", "*/gamma", "*/beta", "*/scale")
_ADAMS = ("adam", "adamw", "lamb")
_OPTIMIZERS_BY_SETTING = {
    "momentum": ("sgd", "rmsprop"),
    "nesterov": ("sgd",),
    "beta_1": (*_ADAMS, "lion"),
    "beta_2": (*_ADAMS, "lion"),
    "epsilon": ("rmsprop", *_ADAMS),
    "l2": ("sgd",),
}
UNSCALED = "unscaled"
_BATCH_EXPONENTS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}
Scaling = Literal["none", "sqrt", "linear"]
_SCHEDULES_BY_SETTING = {
    "warmup_steps": ("constant", "cosine", "step"),
    "warmup_epochs": ("constant", "cosine", "step"),
    "end": ("cosine", "one_cycle"),
    "boundaries": ("step",),
    "factor": ("step",),
    "pct_start": ("one_cycle",),
    "div": ("one_cycle",),
}


def _check_applies(
    spec: type[Spec], value: Any, info: ValidationInfo, names_by_setting: Mapping[str, tuple[str, ...]]
) -> None:
    """Refuses a setting that the chosen `name` ignores.

    Its default passes, because a saved configuration has all fields.
    """
    setting = str(info.field_name)
    names = names_by_setting[setting]
    name = info.data.get("name")
    if name is not None and name not in names and value != spec.model_fields[setting].default:
        raise ValueError(f"{setting} goes with {' and '.join(names)} alone, not with {name}")


class OptimizerSpec(Spec):
    """The Keras optimizer and its settings; None selects the default of Keras.

    Attributes:
        name: Name of the Keras optimizer.
        learning_rate: Base learning rate, which `scale` and the schedule multiply.
        scale: How the learning rate grows with the images per update, `global_batch * accumulate`: times
            their ratio to `reference_batch` (`linear`, for `sgd`: Goyal et al., 2017), times its root
            (`sqrt`, for `adam` and `lamb`: You et al., 2020; Malladi et al., 2022), or not (`none`).
        reference_batch: Images per update that `learning_rate` and `weight_decay` are given for.
        momentum: Momentum of `sgd` and `rmsprop`.
        nesterov: Whether `sgd` uses Nesterov momentum.
        beta_1: Decay of the mean of the gradients; not for `sgd` and `rmsprop`. Keras: 0.9.
        beta_2: Decay of the mean of their squares, in `lion` of the momentum. Keras: 0.999, `lion` 0.99.
        epsilon: Constant that keeps divisions finite; not for `sgd` and `lion`. Keras: 1e-7.
        weight_decay: Decoupled weight decay (Loshchilov and Hutter, 2019): before each update
            `w -= learning_rate * weight_decay * w`, with every optimizer. `adam` with weight decay equals
            `adamw`. In `lamb` the decay is part of the update that the trust ratio scales (You et al., 2020);
            variables that are not decayed have the ratio 1. Keras: 0.004 for `adamw`, else 0.
        decay_scale: How `weight_decay` grows with the images per update, like `scale`. With both `sqrt`, the
            weights decay by the same factor per epoch for any batch; with `scale: linear`, without it.
        l2: L2 penalty, as the weight decay of He et al. (2015) and of SGD in PyTorch: `l2 * w` is added to
            the gradient, after clipping, and so accumulated by the momentum. It decays weights about
            1 / (1 - momentum) times as fast as the same value of `weight_decay`.
        no_decay: Shell-style patterns of the paths of variables that are not decayed.
        clip_norm: Largest global norm of the gradient, over all replicas; None for no limit.
    """

    name: Literal["sgd", "rmsprop", "adam", "adamw", "lamb", "lion"] = "adam"
    learning_rate: Ratio = 1e-3
    scale: Scaling = "none"
    reference_batch: Positive = 256
    momentum: Fraction = 0.0
    nesterov: bool = False
    beta_1: Inside | None = None
    beta_2: Inside | None = None
    epsilon: Ratio | None = None
    weight_decay: NotNegative | None = None
    decay_scale: Scaling = "none"
    l2: NotNegative = 0.0
    no_decay: Patterns = NO_DECAY
    clip_norm: Ratio | None = None

    @field_validator(*_OPTIMIZERS_BY_SETTING)
    @classmethod
    def _validate_for_optimizer(cls, value: Any, info: ValidationInfo) -> Any:
        _check_applies(cls, value, info, _OPTIMIZERS_BY_SETTING)
        if info.field_name == "nesterov" and value and not info.data.get("momentum"):
            raise ValueError("nesterov needs a momentum above 0")
        if info.field_name == "l2" and value and info.data.get("weight_decay"):
            raise ValueError("give weight_decay or l2, not both")
        return value

    def scale_learning_rate(self, batch: int) -> float:
        """Returns the factor on the learning rate for some number of images per update."""
        return _scale_by_batch(self.scale, batch / self.reference_batch)

    def scale_weight_decay(self, batch: int) -> float | None:
        """Returns the weight decay for some number of images per update; None for that of Keras."""
        if self.weight_decay is None:
            return None
        return self.weight_decay * _scale_by_batch(self.decay_scale, batch / self.reference_batch)

    def describe_scaling(self, batch: int) -> str | None:
        """Describes learning rate and weight decay for some number of images per update; None if fixed."""
        parts = []
        if self.scale != "none":
            rate = self.learning_rate * self.scale_learning_rate(batch)
            parts.append(f"learning rate {rate:.6g} ({self.scale} from {self.learning_rate:g})")
        decay = self.scale_weight_decay(batch)
        if decay is not None and self.decay_scale != "none":
            parts.append(f"weight decay {decay:.6g} ({self.decay_scale} from {self.weight_decay:g})")
        if not parts:
            return None
        return f"{' and '.join(parts)}: {batch} images per update, settings are for {self.reference_batch}"


def _scale_by_batch(scaling: Scaling, ratio: float) -> float:
    """Returns the factor for some ratio of a batch to the reference batch."""
    return math.pow(ratio, _BATCH_EXPONENTS[scaling])


class ScheduleSpec(Spec):
    """The learning rate over the updates of a stage, as a factor on its base rate.

    Attributes:
        name: `constant`; `cosine`, from 1 to `end` (Loshchilov and Hutter, 2017); `step`, times `factor` at
            each boundary; `one_cycle`, up from 1 / `div` to 1 and down to `end`, both along a half cosine
            (Smith and Topin, 2018).
        warmup_steps: Updates before the full rate, during which the rate rises linearly; not for `one_cycle`,
            which has its own rise.
        warmup_epochs: Length of the warmup in epochs instead, fractions allowed.
        warmup_from: Factor of the first update of the warmup; `unscaled` for the rate before
            `optimizer.scale`, as in Goyal et al. (2017).
        end: Factor that `cosine` and `one_cycle` approach: that of the update after the last one.
        boundaries: Epochs after which the rate falls, counted from the start of the stage, warmup included.
        factor: Factor on the learning rate at each boundary.
        pct_start: Share of the updates before the peak of `one_cycle`.
        div: Peak of `one_cycle` divided by its first rate.
    """

    name: Literal["constant", "cosine", "step", "one_cycle"] = "constant"
    warmup_steps: Count = 0
    warmup_epochs: NotNegative = 0.0
    warmup_from: Share | Literal["unscaled"] = 0.0
    end: Share = 0.0
    boundaries: Annotated[tuple[Positive, ...], Field(validate_default=True)] = ()
    factor: PositiveShare = 0.1
    pct_start: Inside = 0.3
    div: Annotated[float, Field(ge=1.0, strict=True)] = 25.0

    @field_validator(*_SCHEDULES_BY_SETTING)
    @classmethod
    def _validate_for_schedule(cls, value: Any, info: ValidationInfo) -> Any:
        _check_applies(cls, value, info, _SCHEDULES_BY_SETTING)
        if info.field_name == "warmup_epochs" and value and info.data.get("warmup_steps"):
            raise ValueError("give warmup_steps or warmup_epochs, not both")
        return value

    @field_validator("boundaries")
    @classmethod
    def _validate_boundaries(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if not value and info.data.get("name") == "step":
            raise ValueError("step needs the epochs after which the rate falls, such as [30, 60]")
        if list(value) != sorted(set(value)):
            raise ValueError(f"boundaries ascend, such as {sorted(set(value))}")
        return value


class StageSpec(Spec):
    """Consecutive epochs of a run with their own learning rate, schedule and trainable layers.

    Layers that match the run's `freeze` or the stage's `freeze` are frozen, except those that match the
    stage's `train`. A stage inherits nothing from the previous one. For patterns, see
    `service.training.optimizers`.

    Attributes:
        epochs: Number of epochs of this stage.
        learning_rate: Base learning rate, which `optimizer.scale` multiplies; None for that of the optimizer.
        schedule: Schedule over the updates of this stage; None for that of the run, started again.
        freeze: Patterns of layers that are not trained in this stage.
        train: Patterns of layers that are trained although other patterns freeze them.
    """

    epochs: Positive
    learning_rate: Ratio | None = None
    schedule: ScheduleSpec | None = None
    freeze: Patterns = ()
    train: Patterns = ()


class EarlyStoppingSpec(Spec):
    """Condition for stopping a run before its last epoch.

    Attributes:
        metric: Metric that has to improve: a loss falls, an accuracy rises.
        patience: Epochs without a new best value after which the run stops, at the next epoch that is
            evaluated.
        min_delta: Smallest change over the best value that counts as an improvement.
    """

    metric: Literal["val_loss", "val_accuracy", "loss", "accuracy"] = "val_loss"
    patience: Positive = 5
    min_delta: NotNegative = 0.0


def should_stop(history: Sequence[Mapping[str, float]], spec: EarlyStoppingSpec) -> bool:
    """Tells whether early stopping ends training after the last epoch of a history.

    An epoch without the metric, because it was not evaluated, never ends training, but counts as an epoch of
    patience.

    Args:
        history: Metrics per epoch, from the first epoch that counts.
        spec: Metric, patience and smallest improvement.
    """
    best_index = find_last_improvement(history, spec)
    epochs_since = len(history) if best_index is None else len(history) - 1 - best_index
    is_evaluated = bool(history) and spec.metric in history[-1]
    return is_evaluated and epochs_since >= spec.patience


def find_last_improvement(history: Sequence[Mapping[str, float]], spec: EarlyStoppingSpec) -> int | None:
    """Finds the index of the last epoch that improved the metric; None if no epoch has a value.

    Epochs without the metric, because they were not evaluated, are skipped.

    Args:
        history: Metrics per epoch, from the first epoch that counts.
        spec: Metric, patience and smallest improvement.
    """
    sign = 1.0 if spec.metric.endswith("loss") else -1.0
    best = math.inf
    best_index = None
    for index, metrics in enumerate(history):
        if spec.metric not in metrics:
            continue
        value = sign * metrics[spec.metric]
        if value < best - spec.min_delta:
            best = value
            best_index = index
    return best_index


def validate_class_weights(value: Any) -> Any:
    """Validates `balanced`, or positive numbers by class name; names that YAML reads as numbers become text.

    Args:
        value: Value as parsed from YAML.

    Raises:
        ValueError: The value is neither; pydantic expects this exception of a validator.
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
    """Computes the factor on the loss for each class.

    Args:
        spec: `balanced`, factors by class name (1 for other classes), or None for 1 everywhere. With
            `balanced`, n images and k classes, an image of a class of c images has the weight n / (k * c).
            All classes then have equal total weight and the mean weight is 1; empty classes are left out.
        classes: Class names in the order of their labels.
        counts: Training images of each class.

    Returns:
        float32 `[classes]`.

    Raises:
        ConfigError: A factor names a class that does not exist.
    """
    if spec == "balanced":
        images = np.asarray(counts, np.float64)  # [classes]
        weights = images.sum() / (np.count_nonzero(images) * np.maximum(images, 1.0))
        return np.where(images > 0, weights, 1.0).astype(np.float32)
    factors = spec or {}
    for name in factors:
        if name not in classes:
            raise ConfigError(
                "the name of a class", f"class_weights.{name}={factors[name]}", suggest(name, classes)
            )
    return np.array([factors.get(name, 1.0) for name in classes], np.float32)


def format_epochs(count: int) -> str:
    """Returns a number of epochs as text, such as `1 epoch` or `3 epochs`."""
    return f"{count} epoch" if count == 1 else f"{count} epochs"
