"""Compares predictions of two models for the same images: where they differ, and whether by chance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.text import keep_together

SIGNIFICANCE = 0.05  # p-value below which a difference is called more than chance
LOG_HALF = math.log(0.5)


@dataclass(frozen=True)
class Outcomes:
    """How many images of one class, or of all, each of two models classifies correctly.

    Attributes:
        both: Images that both classify correctly.
        only_first: Images that only the first model classifies correctly.
        only_second: Images that only the second model classifies correctly.
        neither: Images that both classify incorrectly.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def images(self) -> int:
        """Number of images."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def first_accuracy(self) -> float:
        """Accuracy of the first model; NaN without images."""
        return _divide(self.both + self.only_first, self.images)

    @property
    def second_accuracy(self) -> float:
        """Accuracy of the second model; NaN without images."""
        return _divide(self.both + self.only_second, self.images)

    @property
    def difference(self) -> float:
        """Accuracy of the second model minus that of the first; NaN without images."""
        return _divide(self.only_second - self.only_first, self.images)

    @property
    def p_value(self) -> float:
        """The p-value of McNemar's exact test, see `compute_mcnemar_p_value`."""
        return compute_mcnemar_p_value(self.only_first, self.only_second)


def count_outcomes(is_first_correct: NDArray[np.bool_], is_second_correct: NDArray[np.bool_]) -> Outcomes:
    """Counts which of two models classify images correctly.

    Args:
        is_first_correct: Whether the first model is correct, bool `[N]`.
        is_second_correct: The same for the second model and the same images.
    """
    return Outcomes(
        both=int((is_first_correct & is_second_correct).sum()),
        only_first=int((is_first_correct & ~is_second_correct).sum()),
        only_second=int((~is_first_correct & is_second_correct).sum()),
        neither=int((~is_first_correct & ~is_second_correct).sum()),
    )


def compute_mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Computes the two-sided p-value of McNemar's exact test (1947): could a difference be chance?

    Images that both models classify alike say nothing about which one is better. If the models were equally
    good, each of the others would be a fair coin toss, so that the count follows a binomial distribution. The
    p-value is the probability of a split at least as uneven, in either direction.

    Args:
        only_first: Images that only the first model classifies correctly.
        only_second: Images that only the second model classifies correctly.

    Returns:
        The p-value; 1 if there are no such images.
    """
    total = only_first + only_second
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) + total * LOG_HALF
        for k in range(min(only_first, only_second) + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(log) for log in logs))


def find_disagreements(
    first: NDArray[np.float32], second: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Finds the images that two models assign to different classes, the strongest disagreement first.

    The strength is the total variation distance of the two predictions: half the sum of the differences of
    all probabilities, which is the difference of one probability if there are two classes.

    Args:
        first: Probabilities of the first model, float32 `[N, K]`.
        second: Probabilities of the second model for the same images and classes.

    Returns:
        Indices of the images, int64 `[D]`, and the strengths, float64 `[D]`, in (0, 1]; equally strong ones
        in the order of the images.
    """
    indices = np.flatnonzero(first.argmax(axis=1) != second.argmax(axis=1))
    differences = np.abs(first[indices].astype(np.float64) - second[indices])
    strengths = differences.sum(axis=1) / 2
    order = np.argsort(-strengths, kind="stable")
    return indices[order], strengths[order]


def align_classes(
    probabilities: NDArray[np.float32], names: tuple[str, ...], target: tuple[str, ...]
) -> NDArray[np.float32]:
    """Puts the columns of predictions into the order of another model's classes.

    Args:
        probabilities: float32 `[N, K]`, one column for each of `names`.
        names: Class names in the order of the columns.
        target: The same names in another order.

    Returns:
        float32 `[N, K]`, one column for each of `target`.
    """
    return probabilities[:, [names.index(name) for name in target]]


def describe_difference(outcomes: Outcomes, first: str, second: str) -> str:
    """Describes which of two models is better, and whether that may be chance, in plain words.

    Args:
        outcomes: Outcomes for all images.
        first: Name of the first model.
        second: Name of the second model.
    """
    test = f"McNemar's exact test, {format_p_value(outcomes.p_value)}"
    differing = outcomes.only_first + outcomes.only_second
    if not differing:
        return "Both are right and wrong on exactly the same images: there is no difference between them."
    noun = "image" if differing == 1 else "images"
    of_them = f"of the {differing:,} {noun} that only one of them gets right"
    if outcomes.only_first == outcomes.only_second:
        return f"Both have the same accuracy: {of_them}, each gets half ({test})."
    better, count = (
        (second, outcomes.only_second) if outcomes.difference > 0 else (first, outcomes.only_first)
    )
    points = f"{abs(outcomes.difference) * 100:.1f} points"
    fact = f"{better} is better by {points}: {of_them}, it gets {count:,}."
    if outcomes.p_value < SIGNIFICANCE:
        return f"{fact} So large a difference is unlikely to be chance ({test})."
    return f"{fact} This difference could well be chance ({test})."


def format_p_value(value: float) -> str:
    """Formats a p-value with two significant digits on one line: `p = 0.032`, or `p < 0.0001`."""
    return keep_together("p < 0.0001" if value < 1e-4 else f"p = {value:.2g}")


def _divide(count: int, total: int) -> float:
    return count / total if total else math.nan
