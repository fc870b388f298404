"""Training images whose labels are doubtful, from what a trained model answers for them. NumPy alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.records import Batch
from service.scores import losses

LOOKED_AT = 20_000  # training images at most; rows are a random mix
SURE = (
    0.6,
    0.9,
)  # probability of another class that contradicts a label, at least and at most, however sure the model usually is
BY_HEART = 0.995  # training accuracy above which wrong labels are learned too, and no longer stand out


@dataclass(frozen=True)
class LabelIssue:
    """A training image that may have a wrong label.

    Attributes:
        row: In the training split.
        id: Its path in the source.
        label: The class it is said to be of.
        predicted: The class the model takes it for.
        probability: Of `label`, as the model sees it.
        loss: Negative log likelihood of `label`, in nats.
    """

    row: int
    id: str
    label: str
    predicted: str
    probability: float
    loss: float

    def __str__(self) -> str:
        """In one line."""
        return f"row {self.row}  loss {self.loss:.2f}  {self.label}, taken for {self.predicted} (its label: {self.probability:.1%})  {self.id}"


@dataclass(frozen=True)
class LabelIssues:
    """What a model makes of the labels it was trained on.

    Attributes:
        images: How many were looked at.
        accuracy: Share of them that it names by their label, without augmentation or dropout.
        count: How many labels are doubtful.
        suspects: The most doubtful ones, the highest loss first.
    """

    images: int
    accuracy: float
    count: int
    suspects: tuple[LabelIssue, ...]

    @property
    def words(self) -> str:
        """In sentences."""
        told = f"As it is saved, the model names {self.accuracy:.1%} of {self.images:,} training images by their label. "
        if self.accuracy > BY_HEART:
            told += "It knows them by heart, wrong labels too: these stand out in a model of an earlier epoch, or a regularised one. "
        if not self.count:
            return told + "No label is clearly doubtful."
        named = "label is" if self.count == 1 else "labels are"
        return (
            told
            + f"{self.count:,} {named} doubtful: it is as sure of another class as it usually is of that class."
        )

    @property
    def advice(self) -> str:
        """What to try."""
        return (
            "look at these images; correct their labels or remove them, and build the shard set again"
            if self.count
            else ""
        )

    def figures(self) -> dict[str, Any]:
        """All of it, by name."""
        return {
            "images": self.images,
            "accuracy": self.accuracy,
            "doubtful": self.count,
            "suspects": [vars(s) for s in self.suspects],
        }


def find_label_issues(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int32],
    rows: NDArray[np.int64],
    classes: Sequence[str],
    ids: Callable[[Sequence[int]], list[str]],
    shown: int = 10,
) -> LabelIssues:
    """Finds labels that a model contradicts with confidence.

    A label is doubtful if the model is at least as sure of another class as it is, on average, of that class on the images labelled so
    (confident learning: Northcutt, Jiang and Chuang, 2021), within the bounds of `SURE`. The loss puts them in order.

    Args:
        probabilities: float32 `[N, K]`, of training images.
        labels: int32 `[N]`.
        rows: int64 `[N]`, where they stand in their split.
        classes: Names of the classes.
        ids: Rows to the paths of their images.
        shown: How many suspects are named.
    """
    count = len(labels)
    own = np.eye(len(classes), dtype=bool)[labels]  # [N, K]
    seen = own.any(axis=0)
    mean = np.where(
        seen, np.where(own, probabilities, 0).sum(axis=0) / np.maximum(own.sum(axis=0), 1), np.inf
    )
    usual = np.where(seen, np.clip(mean, *SURE), np.inf)  # [K]
    other = np.where(own, -np.inf, probabilities)  # [N, K]
    doubtful = (other >= usual).any(axis=1)
    loss = losses(probabilities, labels)
    order = np.flatnonzero(doubtful)[np.argsort(-loss[doubtful], kind="stable")][:shown]
    named = ids(rows[order].tolist())
    suspects = tuple(
        LabelIssue(
            row=int(rows[i]),
            id=name,
            label=classes[labels[i]],
            predicted=classes[int(probabilities[i].argmax())],
            probability=float(probabilities[i, labels[i]]),
            loss=float(loss[i]),
        )
        for i, name in zip(order, named, strict=True)
    )
    accuracy = float((probabilities.argmax(axis=1) == labels).mean()) if count else float("nan")
    return LabelIssues(count, accuracy, int(doubtful.sum()), suspects)


def some(batches: Iterable[Batch], images: int) -> Iterator[Batch]:
    """The first batches, until there are so many images."""
    seen = 0
    for batch in batches:
        yield batch
        seen += len(batch["label"])
        if seen >= images:
            return
