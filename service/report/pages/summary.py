"""The head of the page: a verdict in plain words, and the figures it rests on."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from service.diagnosis.curves import accuracy_gap, best_epoch, column
from service.diagnosis.findings import LITTLE, MUCH
from service.report.subject import Subject
from service.scores import majority_class_share, standard_error


@dataclass(frozen=True)
class Summary:
    """The figures of the verdict; shares in [0, 1], None where a figure does not exist.

    Attributes:
        split: Where the saved model was judged for this page.
        images: Number of images there.
        accuracy: Of the saved model there.
        loss: Of the saved model there, in nats.
        commonest: Accuracy of always naming the commonest class there.
        epochs: Epochs trained.
        best_epoch: Epoch of the best validation accuracy, from 1.
        best_accuracy: That accuracy.
        training_accuracy: Training accuracy in that epoch (without validation: in the last).
        gap: How much worse validation is than training in that epoch, see `curves.accuracy_gap`.
        images_per_second: Median over the epochs, the first aside, in which graphs are compiled.
    """

    split: str
    images: int
    accuracy: float
    loss: float
    commonest: float
    epochs: int
    best_epoch: int | None = None
    best_accuracy: float | None = None
    training_accuracy: float | None = None
    gap: float | None = None
    images_per_second: float | None = None

    def figures(self) -> dict[str, Any]:
        """All of them, by name."""
        return asdict(self)


def summarize(subject: Subject) -> Summary:
    """Works the figures out."""
    judged, labels = subject.predictions, subject.evaluation.labels
    training, validation = column(subject.epochs, "accuracy"), column(subject.epochs, "val_accuracy")
    best = best_epoch(validation)
    at_best = training[-1 if best is None else best] if training else None
    speeds = column(subject.epochs, "images_per_second")
    return Summary(
        split=subject.evaluation.split,
        images=len(judged.labels),
        accuracy=judged.accuracy,
        loss=judged.loss,
        commonest=majority_class_share(labels),
        epochs=len(subject.epochs),
        best_epoch=None if best is None else best + 1,
        best_accuracy=None if best is None else validation[best],
        training_accuracy=at_best,
        gap=None if best is None or at_best is None else accuracy_gap(at_best, validation[best]),
        images_per_second=statistics.median(speeds[1:] or speeds) if speeds else None,
    )


def verdict(found: Summary) -> str:
    """One or two sentences on how good the model is and how far it can be trusted on new images."""
    if found.best_accuracy is None:
        kind = "validation images" if found.split == "validation" else "training images"
        words = f"Right on {found.accuracy:.1%} of {found.images:,} {kind}; always naming the commonest class would give {found.commonest:.1%}."
        if found.split != "validation":
            words += " There is no validation split, so nothing is known of how it does on new images."
        return words
    words = f"Right on {found.best_accuracy:.1%} of the validation images at its best, in epoch {found.best_epoch} of {found.epochs}"
    if found.best_accuracy - found.commonest < LITTLE:
        return f"{words}: no better than always naming the commonest class ({found.commonest:.1%}). It has not learned to tell them apart."
    error = standard_error(found.best_accuracy, found.images)
    if found.best_accuracy - found.commonest < 2 * error:
        return (
            f"{words}: not clearly better than always naming the commonest class ({found.commonest:.1%}), because "
            f"{found.images:,} images leave an uncertainty of {error * 100:.1f} points."
        )
    return f"{words}, where always naming the commonest class would give {found.commonest:.1%}. {_on_the_gap(found)}"


def _on_the_gap(found: Summary) -> str:
    gap, training = found.gap, found.training_accuracy
    if gap is None or training is None or math.isnan(gap):
        return ""
    points = f"{abs(gap) * 100:.1f} points"
    if gap > MUCH:
        return f"On its training images it scored {training:.1%}, {points} more: it has learned many of them by heart."
    if gap > LITTLE:
        return f"On its training images it scored {training:.1%}, {points} more: it knows these a little better than new ones."
    if gap < -LITTLE:
        return f"While training it scored {training:.1%}, {points} less: an average over the epoch, while it still learned."
    return f"On its training images it scored {training:.1%}, {points} away: it does as well on new images as on those it learned from."


def doubts(found: Summary, state: str) -> list[str]:
    """What a reader should know before trusting the page."""
    said = []
    if state not in ("", "finished"):
        said.append(f"This run is not finished (state: {state}); the page shows its best model so far.")
    if (
        found.best_accuracy is not None
        and found.split == "validation"
        and abs(found.accuracy - found.best_accuracy) > 0.005
    ):
        said.append(
            f"The saved model scores {found.accuracy:.1%} on this shard set, but training recorded {found.best_accuracy:.1%}: "
            "the data may not be those it was trained with."
        )
    return said
