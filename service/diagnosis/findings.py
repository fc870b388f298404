"""What learning curves show, in plain words, with the figures it rests on and what to try. No TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from service.diagnosis.curves import FEW, Curve, accuracy_gap, column, trend
from service.scores import standard_error

LITTLE, MUCH = 0.02, 0.10  # shares of accuracy: what counts as a small and as a wide gap
SURE, VERY_SURE = (
    2.0,
    3.0,
)  # standard errors; more of them where the best of many epochs is compared with the last
RELATIVE = 0.02  # change of a loss over the last third of the run, as a share of it, from which on it counts
RISE = 0.05  # of a validation loss above its lowest, likewise
FITTED = 0.98  # training accuracy from which on there is little left to learn
Kind = Literal[
    "diverged", "short", "chance", "overfitting", "learning", "converged", "plateau", "underfitting"
]
TITLES: dict[Kind, str] = {
    "diverged": "Diverged",
    "short": "Too short to tell",
    "chance": "Not clearly better than chance",
    "overfitting": "Overfitting",
    "learning": "Still learning",
    "converged": "Converged",
    "plateau": "Plateau",
    "underfitting": "Underfitting",
}


@dataclass(frozen=True)
class Finding:
    """One thing that the curves show.

    Attributes:
        kind: What.
        words: The same in sentences, with the figures.
        advice: What to try.
        figures: By name; epochs count from 1, accuracies and gaps are shares.
    """

    kind: Kind
    words: str
    advice: str
    figures: Mapping[str, Any]

    @property
    def title(self) -> str:
        """In one to four words."""
        return TITLES[self.kind]


@dataclass(frozen=True)
class History:
    """The curves of a run, and what is known of how they were measured.

    Attributes:
        epochs: Metrics per epoch, see `service.runs.Run.metrics`.
        images: Validation images, which decide how uncertain an accuracy is; None where that is not known.
        commonest: Accuracy of always naming the commonest class of them; None likewise.
        failure: Why the run ended, if it failed.
    """

    epochs: Sequence[Mapping[str, float]]
    images: int | None = None
    commonest: float | None = None
    failure: str = ""

    def curve(self, key: str) -> Curve:
        """One metric."""
        return Curve.of(self.epochs, key)

    @property
    def judged(self) -> Literal["val_", ""]:
        """What the model is judged by: validation, or training where there is none; the prefix of its metrics."""
        return "val_" if len(self.curve("val_loss")) and len(self.curve("val_accuracy")) else ""

    def uncertainty(self, accuracy: float) -> float:
        """Standard error of a validation accuracy for the number of images alone; 0 where that is not known."""
        return standard_error(min(max(accuracy, 0.0), 1.0), self.images) if self.images else 0.0


def diagnose(history: History) -> list[Finding]:
    """Says what curves show: whether they diverged, overfit, still learn, or have come to rest.

    Curves are smoothed by a running median, and nothing is claimed that lies within their noise: that of the epochs, and that of
    judging by a limited number of images.

    Returns:
        At least one finding, the weightiest first.
    """
    checks: tuple[Callable[[History], Finding | None], ...] = (_diverged, _short)
    for check in checks:
        if found := check(history):
            return [found]
    chance, overfitting = _chance(history), _overfitting(history)
    resting = None if overfitting else _learning(history) or (None if chance else _at_rest(history))
    return [finding for finding in (chance, overfitting, resting) if finding]


def _diverged(history: History) -> Finding | None:
    advice = "a lower optimizer.learning_rate, schedule.warmup_epochs=1 or optimizer.clip_norm=1"
    found = partial(Finding, "diverged", advice=advice)
    for key, name in (("loss", "training"), ("val_loss", "validation")):
        for epoch, value in enumerate(column(history.epochs, key), 1):
            if key in history.epochs[epoch - 1] and not math.isfinite(value):
                return found(
                    words=f"The {name} loss is no finite number in epoch {epoch}.", figures={"epoch": epoch}
                )
    if "finite" in history.failure:
        told = f"Training stopped after {len(history.epochs)} epochs, because a loss or a gradient was no longer finite."
        return found(words=told, figures={"epoch": len(history.epochs) + 1})
    loss = history.curve("loss")
    if len(loss) < 2:
        return None
    smooth = loss.smooth
    at, first, last = int(smooth.argmin()), float(smooth[0]), float(smooth[-1])
    rise = last - float(smooth[at])
    if rise <= max(VERY_SURE * math.sqrt(2) * loss.error, (first - float(smooth[at])) / 2, RISE * abs(first)):
        return None
    epoch = int(loss.epochs[at])
    told = f"The training loss has risen from {smooth[at]:.3g} in epoch {epoch} to {last:.3g}: it has lost most of what it had learned."
    return found(words=told, figures={"epoch": epoch, "lowest_loss": float(smooth[at]), "loss": last})


def _short(history: History) -> Finding | None:
    judged = history.curve(f"{history.judged}loss")
    if len(judged) >= FEW:
        return None
    words = f"{_epochs(len(judged))} measured: below {FEW} nothing can be said of where the curves go."
    figures: dict[str, Any] = {"epochs": len(judged)}
    if history.judged and len(history.curve("accuracy")):
        training, validation, gap, error = _gap(history)
        words += (
            f" So far it scores {training:.1%} on training images and {validation:.1%} on validation images."
        )
        figures |= {
            "training_accuracy": training,
            "validation_accuracy": validation,
            "gap": gap,
            "error": error,
        }
    return Finding("short", words, f"epochs={max(2 * len(history.epochs), 10)}", figures)


def _chance(history: History) -> Finding | None:
    accuracy = history.curve(f"{history.judged}accuracy")
    if history.commonest is None or not len(accuracy):
        return None
    best = float(accuracy.smooth.max())
    error = history.uncertainty(history.commonest)
    if best - history.commonest >= max(SURE * error, LITTLE):
        return None
    on = "validation" if history.judged else "training"
    words = (
        f"At its best it scores {best:.1%} on {on} images (smoothed); always naming the commonest class gives {history.commonest:.1%}"
        + (f", with an uncertainty of {error * 100:.1f} points." if error else ".")
    )
    advice = "another optimizer.learning_rate (ten times lower, ten times higher), and 'glassbox preview' to see whether the labels fit"
    return Finding(
        "chance", words, advice, {"accuracy": best, "commonest": history.commonest, "error": error}
    )


def _gap(history: History) -> tuple[float, float, float, float]:
    """Training and validation accuracy in the end, smoothed, the gap between them, and its standard error."""
    seen, judged = history.curve("accuracy"), history.curve("val_accuracy")
    training, validation = float(seen.smooth[-1]), float(judged.smooth[-1])
    error = math.hypot(history.uncertainty(validation), seen.error, judged.error)
    return training, validation, accuracy_gap(training, validation), error


def _overfitting(history: History) -> Finding | None:
    if not history.judged or not len(history.curve("accuracy")):
        return None
    training, validation, gap, error = _gap(history)
    loss = history.curve("val_loss")
    smooth = loss.smooth
    at = int(smooth.argmin())
    lowest, last, epoch = float(smooth[at]), float(smooth[-1]), int(loss.epochs[at])
    rises = last - lowest > max(VERY_SURE * math.sqrt(2) * loss.error, RISE * lowest)
    if gap <= max(SURE * error, LITTLE) or not (rises or gap > MUCH):
        return None
    figures = {"gap": gap, "error": error, "training_accuracy": training, "validation_accuracy": validation}
    scores = (
        f"In the end it scores {training:.1%} on training images and {validation:.1%} on validation images: a gap of {gap * 100:.1f} points"
        + (f", with an uncertainty of {error * 100:.1f}." if error else ".")
    )
    if rises:
        figures |= {"epoch": epoch, "lowest_loss": lowest, "loss": last}
        words = (
            f"From epoch {epoch} on: the validation loss was lowest there ({lowest:.3g}, smoothed over {_epochs(loss.window)}) and has "
            f"risen to {last:.3g}{_meanwhile(history.curve('loss'), epoch)}. {scores}"
        )
    else:
        epoch = _gap_opens(history, SURE * error)
        figures |= {"epoch": epoch}
        words = f"From epoch {epoch} on it does clearly better on the images it learns from. {scores}"
    how = "by heart" if gap > MUCH else "a little better than new ones"
    advice = (
        "more augmentation (augment.flip=true, augment.rotation, augment.zoom), dropout, optimizer.weight_decay, more images, or "
        "early_stopping.patience=5; the best epoch is kept in model.keras"
    )
    return Finding("overfitting", f"{words} It knows its training images {how}.", advice, figures)


def _meanwhile(loss: Curve, epoch: int) -> str:
    """What the training loss did since an epoch; nothing where it was not measured by then."""
    before = loss.smooth[loss.epochs <= epoch]
    return (
        f", while the training loss went from {before[-1]:.3g} to {loss.smooth[-1]:.3g}"
        if len(before)
        else ""
    )


def _gap_opens(history: History, limit: float) -> int:
    """The first epoch from which on the smoothed gap is above a limit to the end."""
    seen, judged = history.curve("accuracy"), history.curve("val_accuracy")
    training = dict(zip(seen.epochs.tolist(), seen.smooth.tolist(), strict=True))
    opened = int(judged.epochs[-1])
    for epoch, validation in reversed(list(zip(judged.epochs.tolist(), judged.smooth.tolist(), strict=True))):
        if accuracy_gap(training.get(epoch, math.inf), validation) <= limit:
            break
        opened = epoch
    return int(opened)


def _learning(history: History) -> Finding | None:
    on = "validation" if history.judged else "training"
    advice = f"more epochs (epochs={2 * len(history.epochs)})"
    loss = history.curve(f"{history.judged}loss")
    line, level = trend(loss), float(loss.smooth[-1])
    figures = {"epochs": line.epochs, "change": line.change, "error": line.error, "loss": level}
    if _falls(loss):
        words = f"Over the last {_epochs(line.epochs)} the {on} loss fell by {-line.change:.2g} ± {line.error:.1g}, to {level:.3g}."
        return Finding("learning", words, advice, figures)
    losses = history.curve("loss")
    rises = line.change > max(VERY_SURE * line.error, RELATIVE * level)
    if not history.judged or rises or not _falls(losses):
        return None
    training, validation, gap, error = _gap(history)
    if gap > max(SURE * error, LITTLE):
        return None
    seen, level = trend(losses), float(losses.smooth[-1])
    words = (
        f"Over the last {_epochs(seen.epochs)} the training loss fell by {-seen.change:.2g} ± {seen.error:.1g}, to {level:.3g}, "
        f"and the validation loss changed by {line.change:+.2g} ± {line.error:.1g}. It scores {training:.1%} on training images and "
        f"{validation:.1%} on validation images, which is no clear gap."
    )
    return Finding(
        "learning", words, advice, figures | {"training_change": seen.change, "gap": gap, "gap_error": error}
    )


def _falls(loss: Curve) -> bool:
    """Whether the last third of a loss clearly goes down, and enough to matter."""
    if len(loss) < FEW:
        return False
    line = trend(loss)
    return -line.change > max(VERY_SURE * line.error, RELATIVE * abs(float(loss.smooth[-1])))


def _at_rest(history: History) -> Finding:
    on = "validation" if history.judged else "training"
    line = trend(history.curve(f"{history.judged}loss"))
    seen = history.curve("accuracy")
    training = float(seen.smooth[-1]) if len(seen) else math.nan
    figures: dict[str, Any] = {
        "epochs": line.epochs,
        "change": line.change,
        "error": line.error,
        "training_accuracy": training,
    }
    words = f"Over the last {_epochs(line.epochs)} the {on} loss changed by {line.change:+.2g} ± {line.error:.1g}."
    gap, error = 0.0, 0.0
    if history.judged and len(seen):
        _, validation, gap, error = _gap(history)
        figures |= {"validation_accuracy": validation, "gap": gap, "error": error}
        words += f" It scores {training:.1%} on training images and {validation:.1%} on validation images."
    if training >= FITTED and gap <= MUCH:
        return Finding("converged", words, "nothing more of the same: it fits what it learns from", figures)
    if gap > min(max(SURE * error, LITTLE), MUCH):
        return Finding(
            "plateau",
            words,
            "augmentation, or a schedule that lowers the rate (schedule.name=cosine)",
            figures,
        )
    words += " It does not fit even the images it learns from." if training < 1 - MUCH else ""
    advice = "a larger model, less augmentation or dropout, another optimizer.learning_rate, or schedule.name=cosine"
    return Finding("underfitting" if training < 1 - MUCH else "plateau", words, advice, figures)


def _epochs(count: int) -> str:
    return f"{count} epoch" + ("" if count == 1 else "s")
