"""Finds label issues: training images whose label a trained model confidently contradicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.records import Batch
from service.scores import losses

MAX_IMAGES = 20_000  # largest number of training images to predict; rows are in random order
# Bounds of a class's threshold, regardless of the mean confidence of the model in this class.
CONFIDENCE_BOUNDS = (0.6, 0.9)
MEMORIZED = 0.995  # training accuracy above which wrong labels are memorized too, and no longer stand out


@dataclass(frozen=True)
class LabelIssue:
    """A training image whose label may be wrong.

    Attributes:
        row: Row number in the training split.
        id: Path of the image in its source.
        label: Name of the class that the image is labelled with.
        predicted: Name of the most probable class.
        probability: Predicted probability of `label`, 0 to 1.
        loss: Negative log likelihood of `label`, in nats.
    """

    row: int
    id: str
    label: str
    predicted: str
    probability: float
    loss: float

    def __str__(self) -> str:
        return (
            f"row {self.row}  loss {self.loss:.2f}  {self.label}, predicted {self.predicted} "
            f"(probability of its label: {self.probability:.1%})  {self.id}"
        )


@dataclass(frozen=True)
class LabelIssues:
    """The label issues of a training split.

    Attributes:
        images: Number of training images that were predicted.
        accuracy: Share of them predicted as labelled, without augmentation or dropout.
        count: Number of label issues.
        issues: The most severe ones, the highest loss first.
    """

    images: int
    accuracy: float
    count: int
    issues: tuple[LabelIssue, ...]

    @property
    def message(self) -> str:
        """The result in full sentences."""
        message = (
            f"The saved model predicts {self.accuracy:.1%} of {self.images:,} training images as labelled."
        )
        if self.accuracy > MEMORIZED:
            message += (
                " It has memorized them, including wrong labels: "
                "those stand out in the model of an earlier epoch, or in a regularized one."
            )
        if not self.count:
            return f"{message} No label issues were found."
        issues = "label issue" if self.count == 1 else "label issues"
        return (
            f"{message} {self.count:,} {issues}: "
            "the model is as confident in another class as it usually is in that class."
        )

    @property
    def advice(self) -> str:
        """Suggested action, as a phrase; empty without label issues."""
        if not self.count:
            return ""
        return "look at these images; correct their labels or remove them, and build the shard set again"

    def figures(self) -> dict[str, Any]:
        """Returns every figure by name, for the manifest of a report."""
        return {
            "images": self.images,
            "accuracy": self.accuracy,
            "label_issues": self.count,
            "issues": [vars(issue) for issue in self.issues],
        }


def find_label_issues(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int32],
    rows: NDArray[np.int64],
    classes: Sequence[str],
    read_ids: Callable[[Sequence[int]], list[str]],
    max_issues: int = 10,
) -> LabelIssues:
    """Finds labels that a model confidently contradicts (confident learning; Northcutt et al., 2021).

    A label is an issue if the probability of another class reaches the threshold of that class. The threshold
    is the mean probability of the class over the images labelled with it, clipped to `CONFIDENCE_BOUNDS`.
    Issues are ranked by their loss.

    Args:
        probabilities: float32 `[N, K]`, predicted for training images.
        labels: int32 `[N]`, the labels of these images.
        rows: int64 `[N]`, their row numbers in the training split.
        classes: Class names; labels are indices into them.
        read_ids: Returns the paths of the images in some rows.
        max_issues: Largest number of issues to list.
    """
    is_label = np.eye(len(classes), dtype=bool)[labels]  # [N, K]
    images_per_class = is_label.sum(axis=0)  # [K]
    confidence_sum = np.where(is_label, probabilities, 0).sum(axis=0)
    mean_confidence = confidence_sum / np.maximum(images_per_class, 1)
    threshold = np.where(images_per_class > 0, np.clip(mean_confidence, *CONFIDENCE_BOUNDS), np.inf)  # [K]
    of_other_classes = np.where(is_label, -np.inf, probabilities)  # [N, K]
    is_issue = (of_other_classes >= threshold).any(axis=1)  # [N]

    loss = losses(probabilities, labels)
    by_loss = np.argsort(-loss[is_issue], kind="stable")
    most_severe = np.flatnonzero(is_issue)[by_loss][:max_issues]
    issues = []
    for index, image_id in zip(most_severe, read_ids(rows[most_severe].tolist()), strict=True):
        issues.append(
            LabelIssue(
                row=int(rows[index]),
                id=image_id,
                label=classes[labels[index]],
                predicted=classes[int(probabilities[index].argmax())],
                probability=float(probabilities[index, labels[index]]),
                loss=float(loss[index]),
            )
        )
    accuracy = float((probabilities.argmax(axis=1) == labels).mean()) if len(labels) else float("nan")
    return LabelIssues(len(labels), accuracy, int(is_issue.sum()), tuple(issues))


def limit_batches(batches: Iterable[Batch], images: int) -> Iterator[Batch]:
    """Yields the first batches, until they hold at least `images` images."""
    count = 0
    for batch in batches:
        yield batch
        count += len(batch["label"])
        if count >= images:
            return
