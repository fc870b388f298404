"""Finds training images whose label a model confidently contradicts, and estimates how many are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.records import Batch
from service.diagnosis.calibration import MIN_IMAGES as MIN_CALIBRATION_IMAGES
from service.diagnosis.calibration import Calibration, compute_error_probabilities, estimate_noise_rate
from service.scores import compute_skill, losses

MAX_IMAGES = 20_000  # largest number of training images to predict; rows are in random order
# Bounds of a class's threshold, regardless of the mean confidence of the model in this class.
CONFIDENCE_BOUNDS = (0.6, 0.9)
# Skill (see `compute_skill`) below which nothing is listed: a two-class model with 59.9 % has 0.2.
MIN_SKILL = 0.25
MIN_PRECISION = 0.5  # expected share of wrong labels from which they are called label issues
# Skill on unseen images from which that estimate is believed. Below it, confident mistakes look like wrong
# labels: cross-validated models with a skill of 0.46 expected a precision of 0.64 where it was 0.20.
MIN_UNSEEN_SKILL = 0.6
MEMORIZED = 0.995  # training accuracy above which wrong labels are memorized too, and no longer stand out


class LabelledPredictions(Protocol):
    """Predictions next to the labels, such as `service.inference.classifier.Predictions`.

    Attributes:
        probabilities: float32 `[N, K]`, one row per image.
        labels: int32 `[N]`, class indices.
        rows: int64 `[N]`, row numbers in the training split.
    """

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Predicted probabilities."""

    @property
    def labels(self) -> NDArray[np.int32]:
        """Labels of the images."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """Row numbers of the images."""


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
    """Training images whose label the model contradicts.

    Attributes:
        images: Number of training images that were predicted.
        accuracy: Share of them predicted as labelled, without augmentation or dropout.
        skill: Share of the way from the majority-class baseline to an accuracy of 1, at most 1.
        count: Number of images whose label is contradicted; 0 if the model has not learned enough to tell.
        expected_precision: Expected share of wrong labels among these, 0 to 1; None if it cannot be estimated
            because there are too few images that the model was not trained on.
        noise_rate: Estimated share of wrong labels among all images; None if it cannot be estimated.
        unseen_skill: Skill on images the model was not trained on; None if there are too few.
        issues: The most severe ones, the highest loss first.
        is_cross_validated: Whether every image was predicted by a model that was not trained on it.
    """

    images: int
    accuracy: float
    skill: float
    count: int
    expected_precision: float | None
    noise_rate: float | None
    issues: tuple[LabelIssue, ...]
    is_cross_validated: bool = False
    unseen_skill: float | None = None

    @property
    def has_skill(self) -> bool:
        """Whether the model is so much better than chance that its contradictions mean something."""
        return self.skill >= MIN_SKILL

    @property
    def are_likely_wrong(self) -> bool:
        """Whether most of the contradicted labels are wrong, as far as the model is good enough to tell."""
        if self.expected_precision is None or self.unseen_skill is None:
            return False
        return self.expected_precision >= MIN_PRECISION and self.unseen_skill >= MIN_UNSEEN_SKILL

    @property
    def title(self) -> str:
        """Heading of the list: hard examples, unless most of the labels are expected to be wrong."""
        return "Label issues" if self.are_likely_wrong or not self.count else "Hard examples"

    @property
    def message(self) -> str:
        """The result in full sentences."""
        if self.is_cross_validated:
            subject = "Models that were trained without these images predict"
        else:
            subject = "The saved model predicts"
        message = f"{subject} {self.accuracy:.1%} of {self.images:,} training images as labelled."
        if not self.has_skill:
            return (
                f"{message} That is not clearly better than always predicting the most frequent class, so "
                "the model cannot tell which labels are wrong."
            )
        if self.accuracy > MEMORIZED and not self.is_cross_validated:
            message += (
                " It has memorized them, including wrong labels: those stand out with --folds, in the model "
                "of an earlier epoch, or in a regularized one."
            )
        if not self.count:
            return f"{message} No label issues were found."
        return f"{message} {self._describe_count()}"

    def _describe_count(self) -> str:
        if self.are_likely_wrong:
            issues = "label issue" if self.count == 1 else "label issues"
            return (
                f"{self.count:,} {issues}: the model is as confident in another class as it usually is in "
                f"that class. About {self.expected_precision:.0%} of these labels are expected to be wrong."
            )
        examples = "hard example" if self.count == 1 else "hard examples"
        text = f"{self.count:,} {examples}, where the model is confident in another class."
        if self.expected_precision is None:
            needed = "images" if self.is_cross_validated else "validation images, or --folds"
            return (
                f"{text} How many of these labels are wrong is unknown: that takes at least "
                f"{MIN_CALIBRATION_IMAGES} {needed}."
            )
        if self.expected_precision >= MIN_PRECISION:
            return (
                f"{text} How many of these labels are wrong cannot be told: on images it has not seen, the "
                "model is wrong too often itself."
            )
        return f"{text} Most of their labels are probably right, and the model is wrong."

    @property
    def advice(self) -> str:
        """Suggested action, as a phrase; empty unless most of the labels are expected to be wrong."""
        if not self.count or not self.are_likely_wrong:
            return ""
        return "look at these images; correct their labels or remove them, and build the shard set again"

    def figures(self) -> dict[str, Any]:
        """Returns every figure by name, for the manifest of a report."""
        return {
            "images": self.images,
            "accuracy": self.accuracy,
            "skill": self.skill,
            "label_issues": self.count,
            "expected_precision": self.expected_precision,
            "noise_rate": self.noise_rate,
            "unseen_skill": self.unseen_skill,
            "cross_validated": self.is_cross_validated,
            "issues": [vars(issue) for issue in self.issues],
        }


def find_label_issues(
    predictions: LabelledPredictions,
    classes: Sequence[str],
    read_ids: Callable[[Sequence[int]], list[str]],
    max_issues: int = 10,
    calibration: Calibration | None = None,
    is_cross_validated: bool = False,
) -> LabelIssues:
    """Finds labels that a model confidently contradicts (confident learning; Northcutt et al., 2021).

    A label is an issue if the probability of another class reaches the threshold of that class. The threshold
    is the mean probability of the class over the images labelled with it, clipped to `CONFIDENCE_BOUNDS`.
    Issues are ranked by their loss.

    How many of these labels are wrong is estimated from the calibration: with the temperature fitted to
    images the model was not trained on, the share of wrong labels among the training images is the one of the
    highest likelihood, and Bayes' rule gives the probability that a label is wrong. On training images the
    model is closer to the labels, also to the wrong ones, so the estimate is low rather than high.
    `tests/benchmarks/README.md` compares it with the truth for labels that were flipped on purpose.

    Args:
        predictions: Predictions for training images.
        classes: Class names; labels are indices into them.
        read_ids: Returns the paths of the images in some rows.
        max_issues: Largest number of issues to list.
        calibration: Calibration on images the model was not trained on; None if there are too few.
        is_cross_validated: Whether every image was predicted by a model that was not trained on it.
    """
    probabilities = predictions.probabilities
    labels = predictions.labels
    accuracy = float((probabilities.argmax(axis=1) == labels).mean()) if len(labels) else float("nan")
    skill = compute_skill(accuracy, labels)
    is_issue = _find_contradictions(probabilities, labels)
    if not skill >= MIN_SKILL:
        is_issue[:] = False
    noise_rate = None
    expected_precision = None
    if calibration is not None:
        label_probabilities = calibration.compute_label_probabilities(probabilities, labels)
        noise_rate = estimate_noise_rate(label_probabilities, len(classes))
        errors = compute_error_probabilities(label_probabilities, noise_rate, len(classes))
        expected_precision = float(errors[is_issue].mean()) if is_issue.any() else None

    loss = losses(probabilities, labels)
    by_loss = np.argsort(-loss[is_issue], kind="stable")
    most_severe = np.flatnonzero(is_issue)[by_loss][:max_issues]
    issues = []
    for index, image_id in zip(most_severe, read_ids(predictions.rows[most_severe].tolist()), strict=True):
        issues.append(
            LabelIssue(
                row=int(predictions.rows[index]),
                id=image_id,
                label=classes[labels[index]],
                predicted=classes[int(probabilities[index].argmax())],
                probability=float(probabilities[index, labels[index]]),
                loss=float(loss[index]),
            )
        )
    return LabelIssues(
        images=len(labels),
        accuracy=accuracy,
        skill=skill,
        count=int(is_issue.sum()),
        expected_precision=expected_precision,
        noise_rate=noise_rate,
        issues=tuple(issues),
        is_cross_validated=is_cross_validated,
        unseen_skill=None if calibration is None else calibration.skill,
    )


def _find_contradictions(probabilities: NDArray[np.float32], labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Finds the images for which another class reaches its threshold, bool `[N]`."""
    is_label = np.eye(probabilities.shape[1], dtype=bool)[labels]  # [N, K]
    images_per_class = is_label.sum(axis=0)  # [K]
    confidence_sum = np.where(is_label, probabilities, 0).sum(axis=0)
    mean_confidence = confidence_sum / np.maximum(images_per_class, 1)
    threshold = np.where(images_per_class > 0, np.clip(mean_confidence, *CONFIDENCE_BOUNDS), np.inf)  # [K]
    of_other_classes = np.where(is_label, -np.inf, probabilities)  # [N, K]
    return np.asarray((of_other_classes >= threshold).any(axis=1), bool)


def limit_batches(batches: Iterable[Batch], images: int) -> Iterator[Batch]:
    """Yields the first batches, until they hold at least `images` images."""
    count = 0
    for batch in batches:
        yield batch
        count += len(batch["label"])
        if count >= images:
            return
