"""Threshold curves: how many images of a class are found, and how many others, at every threshold.

An image counts as positive if its score is at least the threshold. The curves are those of Fawcett (2006),
"An introduction to ROC analysis", and of Davis and Goadrich (2006), "The relationship between
precision-recall and ROC curves".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 500  # resamplings for an interval
LEVEL = 0.95
MAX_DIGITS = 9  # of a threshold in decimal notation; float32 has no more

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class ThresholdCurve:
    """Counts of true and false positives of one class for every threshold, from the highest to the lowest.

    Attributes:
        scores: The distinct scores, float64 `[T]`, descending; the threshold of step t is `scores[t]`.
        true_positives: Images of the class with at least that score, int64 `[T]`.
        false_positives: Images of other classes with at least that score, int64 `[T]`.
    """

    scores: Floats
    true_positives: Counts
    false_positives: Counts

    @property
    def positives(self) -> int:
        """Number of images of the class."""
        return int(self.true_positives[-1])

    @property
    def negatives(self) -> int:
        """Number of images of other classes."""
        return int(self.false_positives[-1])

    def count_at(self, threshold: float) -> tuple[int, int]:
        """Counts true and false positives at any threshold: images that score at least as high."""
        steps = int((self.scores >= threshold).sum())
        if not steps:
            return 0, 0
        return int(self.true_positives[steps - 1]), int(self.false_positives[steps - 1])


@dataclass(frozen=True)
class Area:
    """Area under a curve.

    Attributes:
        value: The area, 0 to 1.
        interval: Its bootstrap confidence interval over images, at the level of `LEVEL`.
    """

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Stops:
    """The thresholds that a slider stops at.

    Attributes:
        thresholds: Thresholds in decimal notation, descending; the first one is above all scores.
        true_positives: True positives at each of them, exactly.
        false_positives: False positives at each of them, exactly.
        start: Index of the threshold that is closest to one half.
    """

    thresholds: list[str]
    true_positives: list[int]
    false_positives: list[int]
    start: int


def compute_curve(scores: NDArray[np.floating], is_positive: NDArray[np.bool_]) -> ThresholdCurve | None:
    """Counts true and false positives for every threshold; images of equal scores enter together.

    Args:
        scores: Score of every image, float `[N]`: the higher, the more likely of the class.
        is_positive: Whether an image is of the class, bool `[N]`.

    Returns:
        The curve; None unless there are images of the class and others.
    """
    if is_positive.all() or not is_positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order].astype(np.float64)
    is_last_of_score = np.append(ordered[1:] != ordered[:-1], True)
    return ThresholdCurve(
        ordered[is_last_of_score],
        np.cumsum(is_positive[order])[is_last_of_score],
        np.cumsum(~is_positive[order])[is_last_of_score],
    )


def compute_roc_area(true_positives: Floats | Counts, false_positives: Floats | Counts) -> Floats:
    """Computes areas under ROC curves by the trapezoidal rule, so that ties count half.

    Args:
        true_positives: `[..., T]`, cumulative over the thresholds, descending.
        false_positives: `[..., T]`, cumulative as well.

    Returns:
        float64 `[...]`; NaN without images of one kind.
    """
    heights = _prepend_zero(true_positives)
    widths = np.diff(_prepend_zero(false_positives), axis=-1)
    area = (widths * (heights[..., 1:] + heights[..., :-1]) / 2).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(area / (heights[..., -1] * false_positives[..., -1]))


def compute_average_precision(true_positives: Floats | Counts, false_positives: Floats | Counts) -> Floats:
    """Computes areas under precision-recall curves as steps: the average precision, as scikit-learn does.

    Between two thresholds, precision is not interpolated, which would be too optimistic.

    Args:
        true_positives: `[..., T]`, cumulative over the thresholds, descending.
        false_positives: `[..., T]`, cumulative as well.

    Returns:
        float64 `[...]`; NaN without images of the class.
    """
    found = np.diff(_prepend_zero(true_positives), axis=-1)
    predicted = np.maximum(np.asarray(true_positives) + false_positives, 1)
    area = (found * true_positives / predicted).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(area / true_positives[..., -1])


def estimate_areas(
    scores: NDArray[np.floating], is_positive: NDArray[np.bool_], seed: int, draws: int = DRAWS
) -> tuple[Area, Area] | None:
    """Estimates the areas under the ROC and the precision-recall curve with percentile bootstrap intervals.

    Args:
        scores: Score of every image, float `[N]`.
        is_positive: Whether an image is of the class, bool `[N]`.
        seed: Seed of the resampling.
        draws: Number of resampled sets of images.

    Returns:
        Area under the ROC curve, and average precision; None unless there are images of the class and others.
    """
    curve = compute_curve(scores, is_positive)
    if curve is None:
        return None
    # Every image adds its multiplicity in a resampled set to the step of its score.
    steps = np.searchsorted(-curve.scores, -scores.astype(np.float64))
    count = len(scores)
    size = len(curve.scores)
    generator = np.random.default_rng(seed)
    roc_areas = np.empty(draws)
    precision_areas = np.empty(draws)
    for draw in range(draws):
        indices = generator.integers(0, count, count)
        drawn = steps[indices] + size * is_positive[indices]
        negatives, positives = np.bincount(drawn, minlength=2 * size).reshape(2, size).cumsum(axis=1)
        roc_areas[draw] = compute_roc_area(positives, negatives)
        precision_areas[draw] = compute_average_precision(positives, negatives)
    return (
        Area(float(compute_roc_area(curve.true_positives, curve.false_positives)), _find_interval(roc_areas)),
        Area(
            float(compute_average_precision(curve.true_positives, curve.false_positives)),
            _find_interval(precision_areas),
        ),
    )


def choose_stops(curve: ThresholdCurve, limit: int) -> Stops:
    """Chooses thresholds spread evenly along the ROC curve, among them those closest to one half.

    A threshold is written with as few digits as separate its score from the next lower one, so that the
    counts at what is written are exact.

    Args:
        curve: Counts for every threshold.
        limit: Largest number of thresholds, at least 4.
    """
    recall = curve.true_positives / curve.positives
    false_positive_rate = curve.false_positives / curve.negatives
    # Also every threshold counts, so that flat parts of the curve have stops.
    steps = np.arange(1, len(curve.scores) + 1) / len(curve.scores)
    distance = (recall + false_positive_rate + steps) / 3
    wanted = np.searchsorted(distance, np.linspace(0, distance[-1], limit - 3))
    last_above_half = max(int((curve.scores >= 0.5).sum()) - 1, 0)
    kept = np.unique([*np.minimum(wanted, len(steps) - 1), last_above_half, len(steps) - 1])
    thresholds = [_format_above(float(curve.scores[0]))]
    for step in kept.tolist():
        lower = float(curve.scores[step + 1]) if step + 1 < len(curve.scores) else -np.inf
        thresholds.append(_format_between(lower, float(curve.scores[step])))
    return Stops(
        thresholds=thresholds,
        true_positives=[0, *curve.true_positives[kept].tolist()],
        false_positives=[0, *curve.false_positives[kept].tolist()],
        start=int(np.searchsorted(kept, last_above_half)) + (1 if curve.scores[0] >= 0.5 else 0),
    )


def _prepend_zero(values: Floats | Counts) -> Floats:
    """Returns values `[..., T]` as float64 `[..., T + 1]` that begin with 0."""
    padding = [(0, 0)] * (values.ndim - 1) + [(1, 0)]
    return np.pad(values.astype(np.float64), padding)


def _find_interval(values: Floats) -> tuple[float, float]:
    """Returns the percentile interval of resampled values, without those that are not defined."""
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _format_between(lower: float, score: float) -> str:
    """Returns the shortest decimal number that is above `lower` and at most `score`; 0.5 if possible."""
    if lower < 0.5 <= score:
        return "0.5"
    for digits in range(2, MAX_DIGITS + 1):
        text = f"{np.floor(score * 10**digits) / 10**digits:.{digits}f}"
        if lower < float(text) <= score:
            return text
    for digits in range(MAX_DIGITS):
        text = f"{score:.{digits}e}"
        if lower < float(text) <= score:
            return text
    return repr(score)


def _format_above(score: float) -> str:
    """Returns a short decimal number above a score, which no image reaches."""
    if score >= 1:
        return "above 1"
    for digits in range(2, MAX_DIGITS + 1):
        text = f"{np.ceil(score * 10**digits) / 10**digits:.{digits}f}"
        if float(text) > score:
            return text
    return repr(float(np.nextafter(score, 2)))
