"""The head of the report page: a verdict in plain sentences, and the figures it is based on."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from service.diagnosis.curves import accuracy_gap, best_epoch, column
from service.diagnosis.findings import SMALL_GAP, WIDE_GAP
from service.scores import majority_class_share, standard_error

if TYPE_CHECKING:
    from service.report.subject import Subject

# Difference between the recorded accuracy and that of the saved model from which the page warns.
MISMATCH = 0.005


@dataclass(frozen=True)
class Summary:
    """The figures of the verdict; accuracies are shares in [0, 1], None if a figure does not exist.

    Attributes:
        split: Split the saved model was evaluated on for this page.
        images: Number of images in that split.
        accuracy: Accuracy of the saved model on that split.
        loss: Loss of the saved model on that split, in nats.
        majority_class_share: Accuracy of the majority-class baseline on that split.
        epochs: Number of epochs trained.
        best_epoch: Epoch of the best validation accuracy, from 1.
        best_accuracy: Validation accuracy in that epoch.
        training_accuracy: Training accuracy in that epoch; without validation, in the last one.
        gap: Training minus validation accuracy in that epoch, see `curves.accuracy_gap`.
        images_per_second: Median over the epochs without the first, in which graphs are compiled.
    """

    split: str
    images: int
    accuracy: float
    loss: float
    majority_class_share: float
    epochs: int
    best_epoch: int | None = None
    best_accuracy: float | None = None
    training_accuracy: float | None = None
    gap: float | None = None
    images_per_second: float | None = None

    def figures(self) -> dict[str, Any]:
        """Returns all figures by name."""
        return asdict(self)


def summarize(subject: Subject) -> Summary:
    """Computes the figures of the verdict.

    Args:
        subject: Model, data and options of the report.
    """
    predictions = subject.predictions
    training = column(subject.epochs, "accuracy")
    validation = column(subject.epochs, "val_accuracy")
    speeds = column(subject.epochs, "images_per_second")
    best = best_epoch(validation)
    training_accuracy = None
    if training:
        training_accuracy = training[-1 if best is None else best]
    gap = None
    if best is not None and training_accuracy is not None:
        gap = accuracy_gap(training_accuracy, validation[best])
    return Summary(
        split=subject.evaluation.split,
        images=len(predictions.labels),
        accuracy=predictions.accuracy,
        loss=predictions.loss,
        majority_class_share=majority_class_share(subject.evaluation.labels),
        epochs=len(subject.epochs),
        best_epoch=None if best is None else best + 1,
        best_accuracy=None if best is None else validation[best],
        training_accuracy=training_accuracy,
        gap=gap,
        images_per_second=statistics.median(speeds[1:] or speeds) if speeds else None,
    )


def format_verdict(summary: Summary) -> str:
    """Formats one or two sentences on how good the model is, and how well it generalizes.

    Args:
        summary: Figures the verdict is based on.
    """
    baseline = f"majority-class baseline: {summary.majority_class_share:.1%}"
    if summary.best_accuracy is None:
        kind = "validation" if summary.split == "validation" else "training"
        text = f"Accuracy is {summary.accuracy:.1%} on {summary.images:,} {kind} images ({baseline})."
        if summary.split != "validation":
            text += " There is no validation split, so nothing is known about new images."
        return text
    best = (
        f"Validation accuracy peaks at {summary.best_accuracy:.1%} in epoch {summary.best_epoch} "
        f"of {summary.epochs}"
    )
    margin = summary.best_accuracy - summary.majority_class_share
    error = standard_error(summary.best_accuracy, summary.images)
    if margin < SMALL_GAP:
        return f"{best}, no better than the {baseline}. The model has not learned to tell the classes apart."
    if margin < 2 * error:
        return (
            f"{best}, not significantly better than the {baseline}: with {summary.images:,} images, "
            f"the standard error is {error * 100:.1f} points."
        )
    return f"{best} ({baseline}). {_describe_gap(summary)}"


def list_warnings(summary: Summary, state: str) -> list[str]:
    """Lists warnings about the run and the data that limit the validity of the page.

    Args:
        summary: Figures of the report.
        state: State of the run, see `service.runs.Run.status`; empty for a model without a run.
    """
    warnings = []
    if state not in ("", "finished"):
        warnings.append(f"This run is not finished (state: {state}); the page shows its best model so far.")
    if summary.best_accuracy is None or summary.split != "validation":
        return warnings
    if abs(summary.accuracy - summary.best_accuracy) > MISMATCH:
        warnings.append(
            f"The saved model scores {summary.accuracy:.1%} on this shard set, but training recorded "
            f"{summary.best_accuracy:.1%}: the data may differ from those it was trained with."
        )
    return warnings


def _describe_gap(summary: Summary) -> str:
    gap = summary.gap
    training = summary.training_accuracy
    if gap is None or training is None or math.isnan(gap):
        return ""
    points = f"{abs(gap) * 100:.1f} points"
    text = f"Training accuracy in that epoch is {training:.1%}"
    if gap > WIDE_GAP:
        return f"{text}, {points} higher: the model overfits, it has memorized many of its training images."
    if gap > SMALL_GAP:
        return f"{text}, {points} higher: the model overfits slightly."
    if gap < -SMALL_GAP:
        return f"{text}, {points} lower: it is averaged over the epoch, while the model was still improving."
    return f"{text}, within {points}: the model generalizes well to new images."
