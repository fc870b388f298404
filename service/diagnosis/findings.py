"""Diagnoses learning curves: findings as text, with supporting figures and advice. Needs NumPy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from service.diagnosis.curves import MIN_EPOCHS, Curve, accuracy_gap, column, fit_trend
from service.recipe import format_epochs
from service.scores import standard_error

SMALL_GAP = 0.02  # difference of accuracies that is negligible
WIDE_GAP = 0.10  # difference of accuracies that counts as overfitting, regardless of the loss
SIGNIFICANT = 2.0  # standard errors
VERY_SIGNIFICANT = 3.0  # standard errors, for comparisons of the best of many epochs with the last
MIN_LOSS_CHANGE = 0.02  # share of the loss that its change over the last third must exceed
MIN_LOSS_RISE = 0.05  # share of the lowest validation loss that its rise must exceed
FITTED_ACCURACY = 0.98  # training accuracy from which there is little left to learn

Kind = Literal[
    "diverged", "short", "chance", "overfitting", "learning", "converged", "plateau", "underfitting"
]
TITLES: dict[Kind, str] = {
    "diverged": "Diverged",
    "short": "Too few epochs",
    "chance": "No better than the majority-class baseline",
    "overfitting": "Overfitting",
    "learning": "Still improving",
    "converged": "Converged",
    "plateau": "Plateau",
    "underfitting": "Underfitting",
}


@dataclass(frozen=True)
class Finding:
    """One observation about the learning curves.

    Attributes:
        kind: Category of the finding; `TITLES` has a title for each.
        message: Text of the finding in full sentences, with its figures.
        advice: Suggested change, as a phrase without a full stop.
        figures: The figures by name; epochs count from 1, accuracies and gaps are shares.
    """

    kind: Kind
    message: str
    advice: str
    figures: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The kind as a heading."""
        return TITLES[self.kind]


@dataclass(frozen=True)
class History:
    """The learning curves of a run, and how they were measured.

    Attributes:
        epochs: Metrics per epoch, see `service.runs.Run.metrics`.
        images: Number of validation images, which limits the precision of an accuracy; None if unknown.
        majority_share: Accuracy of the majority-class baseline on them; None if unknown.
        failure: Reason why the run failed; empty if it did not.
    """

    epochs: Sequence[Mapping[str, float]]
    images: int | None = None
    majority_share: float | None = None
    failure: str = ""

    def curve(self, key: str) -> Curve:
        """Returns the curve of one metric, such as `val_loss`."""
        return Curve.from_epochs(self.epochs, key)

    @property
    def prefix(self) -> Literal["val_", ""]:
        """Prefix of the metrics that measure the model: `val_` if there are validation metrics."""
        has_validation = len(self.curve("val_loss")) and len(self.curve("val_accuracy"))
        return "val_" if has_validation else ""

    @property
    def split_name(self) -> str:
        """Name of the split those metrics were measured on, for messages."""
        return "validation" if self.prefix else "training"

    def sampling_error(self, accuracy: float) -> float:
        """Computes the standard error of an accuracy from the number of validation images; 0 if unknown."""
        if not self.images:
            return 0.0
        return standard_error(min(max(accuracy, 0.0), 1.0), self.images)


@dataclass(frozen=True)
class Gap:
    """Training against validation accuracy at the end of a run, both smoothed.

    Attributes:
        training: Training accuracy, 0 to 1.
        validation: Validation accuracy, 0 to 1.
        gap: Training minus validation accuracy.
        error: Standard error of the gap.
        epochs: Number of last epochs over which the medians of both accuracies are taken.
    """

    training: float
    validation: float
    gap: float
    error: float
    epochs: int

    @property
    def is_significant(self) -> bool:
        """Whether the gap exceeds both its error and `SMALL_GAP`."""
        return self.gap > max(SIGNIFICANT * self.error, SMALL_GAP)

    def describe(self) -> str:
        """Returns a clause with both accuracies, and the epochs that they are taken from."""
        where = "in the last epoch" if self.epochs == 1 else f"medians of the last {self.epochs} epochs"
        return (
            f"the training accuracy is {self.training:.1%} and the validation accuracy "
            f"{self.validation:.1%} ({where})"
        )


def diagnose(history: History) -> list[Finding]:
    """Describes what learning curves show: divergence, overfitting, improvement, or a plateau.

    Curves are smoothed by a running median. Differences within the noise are not reported: neither within the
    noise between epochs, nor within that of a limited number of validation images.

    Returns:
        At least one finding, the most important first.
    """
    for find in (_find_divergence, _find_short_run):
        finding = find(history)
        if finding:
            return [finding]
    chance = _find_chance_level(history)
    overfitting = _find_overfitting(history)
    progress = None
    if not overfitting:
        progress = _find_improvement(history)
        if progress is None and chance is None:
            progress = _describe_plateau(history)
    return [finding for finding in (chance, overfitting, progress) if finding]


def _find_divergence(history: History) -> Finding | None:
    checks: tuple[Callable[[History], tuple[str, dict[str, Any]] | None], ...] = (
        _find_non_finite_loss,
        _find_non_finite_failure,
        _find_rising_training_loss,
    )
    for check in checks:
        result = check(history)
        if result:
            message, figures = result
            advice = "a lower optimizer.learning_rate, schedule.warmup_epochs=1 or optimizer.clip_norm=1"
            return Finding("diverged", message, advice, figures)
    return None


def _find_non_finite_loss(history: History) -> tuple[str, dict[str, Any]] | None:
    for key, name in (("loss", "training"), ("val_loss", "validation")):
        for epoch, value in enumerate(column(history.epochs, key), 1):
            was_measured = key in history.epochs[epoch - 1]
            if was_measured and not math.isfinite(value):
                return f"The {name} loss is not finite in epoch {epoch}.", {"epoch": epoch}
    return None


def _find_non_finite_failure(history: History) -> tuple[str, dict[str, Any]] | None:
    if "finite" not in history.failure:
        return None
    count = len(history.epochs)
    message = f"Training stopped after {format_epochs(count)} because a loss or a gradient was not finite."
    return message, {"epoch": count + 1}


def _find_rising_training_loss(history: History) -> tuple[str, dict[str, Any]] | None:
    loss = history.curve("loss")
    if len(loss) < 2:
        return None
    smooth = loss.smooth
    index = int(smooth.argmin())
    first = float(smooth[0])
    lowest = float(smooth[index])
    last = float(smooth[-1])
    noise = VERY_SIGNIFICANT * math.sqrt(2) * loss.error
    half_of_progress = (first - lowest) / 2
    if last - lowest <= max(noise, half_of_progress, MIN_LOSS_RISE * abs(first)):
        return None
    epoch = int(loss.epochs[index])
    message = (
        f"The training loss rose from {lowest:.3g} in epoch {epoch} to {last:.3g}: "
        "most of what the model had learned is lost."
    )
    return message, {"epoch": epoch, "lowest_loss": lowest, "loss": last}


def _find_short_run(history: History) -> Finding | None:
    count = len(history.curve(f"{history.prefix}loss"))
    if count >= MIN_EPOCHS:
        return None
    message = f"{format_epochs(count)} measured: fewer than {MIN_EPOCHS} do not show a trend."
    figures: dict[str, Any] = {"epochs": count}
    if history.prefix and len(history.curve("accuracy")):
        gap = _measure_gap(history)
        message += f" So far, {gap.describe()}."
        figures |= {
            "training_accuracy": gap.training,
            "validation_accuracy": gap.validation,
            "gap": gap.gap,
            "error": gap.error,
        }
    return Finding("short", message, f"epochs={max(2 * len(history.epochs), 10)}", figures)


def _find_chance_level(history: History) -> Finding | None:
    accuracy = history.curve(f"{history.prefix}accuracy")
    baseline = history.majority_share
    if baseline is None or not len(accuracy):
        return None
    best = float(accuracy.smooth.max())
    error = history.sampling_error(baseline)
    if best - baseline >= max(SIGNIFICANT * error, SMALL_GAP):
        return None
    message = (
        f"The best {history.split_name} accuracy (smoothed) is {best:.1%}; "
        f"the majority-class baseline reaches {baseline:.1%}"
    )
    message += f", with a standard error of {error * 100:.1f} points." if error else "."
    advice = (
        "another optimizer.learning_rate (ten times lower, ten times higher), "
        "and 'glassbox preview' to check that the labels match the images"
    )
    return Finding("chance", message, advice, {"accuracy": best, "majority_class": baseline, "error": error})


def _measure_gap(history: History) -> Gap:
    training = history.curve("accuracy")
    validation = history.curve("val_accuracy")
    training_accuracy = float(training.smooth[-1])
    validation_accuracy = float(validation.smooth[-1])
    error = math.hypot(history.sampling_error(validation_accuracy), training.error, validation.error)
    gap = accuracy_gap(training_accuracy, validation_accuracy)
    epochs = min(max(training.window, validation.window) // 2 + 1, len(training))
    return Gap(training_accuracy, validation_accuracy, gap, error, epochs)


def _find_overfitting(history: History) -> Finding | None:
    if not history.prefix or not len(history.curve("accuracy")):
        return None
    gap = _measure_gap(history)
    loss = history.curve("val_loss")
    index = int(loss.smooth.argmin())
    lowest = float(loss.smooth[index])
    last = float(loss.smooth[-1])
    noise = VERY_SIGNIFICANT * math.sqrt(2) * loss.error
    loss_rises = last - lowest > max(noise, MIN_LOSS_RISE * lowest)
    if not gap.is_significant or not (loss_rises or gap.gap > WIDE_GAP):
        return None
    figures = {
        "gap": gap.gap,
        "error": gap.error,
        "training_accuracy": gap.training,
        "validation_accuracy": gap.validation,
    }
    if loss_rises:
        epoch = int(loss.epochs[index])
        figures |= {"epoch": epoch, "lowest_loss": lowest, "loss": last}
        message = (
            f"From epoch {epoch} on: the validation loss is lowest there ({lowest:.3g}, smoothed over "
            f"{format_epochs(loss.window)}) and rises to {last:.3g}"
            f"{_describe_training_loss_since(history.curve('loss'), epoch)}."
        )
    else:
        epoch = _first_epoch_of_gap(history, SIGNIFICANT * gap.error)
        figures |= {"epoch": epoch}
        message = f"From epoch {epoch} on, the training accuracy is clearly above the validation accuracy."
    message += f" At the end, {gap.describe()}: a gap of {gap.gap * 100:.1f} points"
    message += f", with a standard error of {gap.error * 100:.1f}." if gap.error else "."
    message += (
        " The model memorizes its training images."
        if gap.gap > WIDE_GAP
        else " The model fits its training images a little better than new ones."
    )
    advice = (
        "more augmentation (augment.flip=true, augment.rotation, augment.zoom), dropout, "
        "optimizer.weight_decay, more images, or early_stopping.patience=5; model.keras holds the best epoch"
    )
    return Finding("overfitting", message, advice, figures)


def _describe_training_loss_since(loss: Curve, epoch: int) -> str:
    """Describes how the training loss changed since an epoch; empty if it was not measured by then."""
    until_then = loss.smooth[loss.epochs <= epoch]
    if not len(until_then):
        return ""
    return f", while the training loss went from {until_then[-1]:.3g} to {loss.smooth[-1]:.3g}"


def _first_epoch_of_gap(history: History, limit: float) -> int:
    """Returns the first epoch from which the smoothed gap stays above a limit."""
    training = history.curve("accuracy")
    validation = history.curve("val_accuracy")
    training_by_epoch = dict(zip(training.epochs.tolist(), training.smooth.tolist(), strict=True))
    by_epoch = list(zip(validation.epochs.tolist(), validation.smooth.tolist(), strict=True))
    first = int(validation.epochs[-1])
    for epoch, accuracy in reversed(by_epoch):
        if accuracy_gap(training_by_epoch.get(epoch, math.inf), accuracy) <= limit:
            break
        first = epoch
    return first


def _find_improvement(history: History) -> Finding | None:
    loss = history.curve(f"{history.prefix}loss")
    trend = fit_trend(loss)
    level = float(loss.smooth[-1])
    advice = f"more epochs (epochs={2 * len(history.epochs)})"
    figures = {"epochs": trend.epochs, "change": trend.change, "error": trend.error, "loss": level}
    if _is_falling(loss):
        message = (
            f"Over the last {format_epochs(trend.epochs)} the {history.split_name} loss fell by "
            f"{-trend.change:.2g} ± {trend.error:.1g}, to {level:.3g}."
        )
        return Finding("learning", message, advice, figures)
    training_loss = history.curve("loss")
    is_rising = trend.change > max(VERY_SIGNIFICANT * trend.error, MIN_LOSS_CHANGE * level)
    if not history.prefix or is_rising or not _is_falling(training_loss):
        return None
    gap = _measure_gap(history)
    if gap.is_significant:
        return None
    training_trend = fit_trend(training_loss)
    message = (
        f"Over the last {format_epochs(training_trend.epochs)} the training loss fell by "
        f"{-training_trend.change:.2g} ± {training_trend.error:.1g}, to {training_loss.smooth[-1]:.3g}, "
        f"and the validation loss changed by {trend.change:+.2g} ± {trend.error:.1g}. "
        f"At the end, {gap.describe()}, which is no clear gap."
    )
    figures |= {"training_change": training_trend.change, "gap": gap.gap, "gap_error": gap.error}
    return Finding("learning", message, advice, figures)


def _is_falling(loss: Curve) -> bool:
    """Tells whether the last third of a loss falls significantly, and by enough to matter."""
    if len(loss) < MIN_EPOCHS:
        return False
    trend = fit_trend(loss)
    level = abs(float(loss.smooth[-1]))
    return -trend.change > max(VERY_SIGNIFICANT * trend.error, MIN_LOSS_CHANGE * level)


def _describe_plateau(history: History) -> Finding:
    """Describes a loss that no longer falls: converged, plateau or underfitting."""
    trend = fit_trend(history.curve(f"{history.prefix}loss"))
    accuracy = history.curve("accuracy")
    training = float(accuracy.smooth[-1]) if len(accuracy) else math.nan
    message = (
        f"Over the last {format_epochs(trend.epochs)} the {history.split_name} loss changed by "
        f"{trend.change:+.2g} ± {trend.error:.1g}."
    )
    figures: dict[str, Any] = {
        "epochs": trend.epochs,
        "change": trend.change,
        "error": trend.error,
        "training_accuracy": training,
    }
    gap = Gap(training, training, 0.0, 0.0, 1)
    if history.prefix and len(accuracy):
        gap = _measure_gap(history)
        figures |= {"validation_accuracy": gap.validation, "gap": gap.gap, "error": gap.error}
        message += f" At the end, {gap.describe()}."
    if training >= FITTED_ACCURACY and gap.gap <= WIDE_GAP:
        advice = "nothing more of the same kind: the model fits its training images"
        return Finding("converged", message, advice, figures)
    if gap.gap > min(max(SIGNIFICANT * gap.error, SMALL_GAP), WIDE_GAP):
        advice = "augmentation, or a schedule that lowers the learning rate (schedule.name=cosine)"
        return Finding("plateau", message, advice, figures)
    advice = (
        "a larger model, less augmentation or dropout, another optimizer.learning_rate, "
        "or schedule.name=cosine"
    )
    if training < 1 - WIDE_GAP:
        message += " The model does not fit even its training images."
        return Finding("underfitting", message, advice, figures)
    return Finding("plateau", message, advice, figures)
