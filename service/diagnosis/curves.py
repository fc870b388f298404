"""Learning curves as numbers: columns of the metrics, gaps, what is left when the noise is taken out, and trends. NumPy alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WIDEST = 15  # epochs that are smoothed over at most
FEW = 5  # values below which nothing is smoothed and no noise is known
MEDIAN_ERROR = 1.25  # standard error of a median over that of a mean, for normal noise


def best_epoch(accuracies: Sequence[float]) -> int | None:
    """Index of the highest accuracy, the earliest of equals; None where there is no finite one."""
    finite = [(-value, index) for index, value in enumerate(accuracies) if math.isfinite(value)]
    return min(finite)[1] if finite else None


def column(epochs: Sequence[Mapping[str, float]], key: str) -> list[float]:
    """One metric over the epochs, NaN where an epoch lacks it; empty where all do."""
    values = [float(epoch.get(key, math.nan)) for epoch in epochs]
    return values if any(key in epoch for epoch in epochs) else []


def accuracy_gap(training: float, validation: float) -> float:
    """How much worse the model does on validation images than on training images, as a share: above 0 is worse."""
    return training - validation


def loss_gap(training: float, validation: float) -> float:
    """The same in loss, where less is better: above 0 is worse."""
    return validation - training


@dataclass(frozen=True)
class Curve:
    """The finite values of one metric.

    Attributes:
        epochs: Their epochs, from 1, ascending; int `[n]`.
        values: float64 `[n]`.
    """

    epochs: NDArray[np.int64]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, epochs: Sequence[Mapping[str, float]], key: str) -> Curve:
        """A metric of a run; epochs in which it was not measured, or is not finite, are left out."""
        values = np.asarray(column(epochs, key) or [math.nan] * len(epochs), np.float64)
        kept = np.isfinite(values)
        return cls(np.flatnonzero(kept) + 1, values[kept])

    def __len__(self) -> int:
        return len(self.values)

    @property
    def window(self) -> int:
        """Epochs that are smoothed over: an odd number, a sixth of all, 3 to `WIDEST`; 1 below `FEW` values."""
        return 1 if len(self) < FEW else min(max(len(self) // 6 | 1, 3), WIDEST)

    @property
    def smooth(self) -> NDArray[np.float64]:
        """A running median over `window` epochs, fewer at the ends, so that single bad epochs do not count; float64 `[n]`."""
        half = self.window // 2
        return np.array([np.median(self.values[max(i - half, 0) : i + half + 1]) for i in range(len(self))])

    @property
    def noise(self) -> float:
        """Standard deviation of an epoch about the curve, from the median of the second differences, in which slopes cancel."""
        if len(self) < FEW:
            return 0.0
        return float(1.4826 * np.median(np.abs(np.diff(self.values, 2))) / math.sqrt(6))

    @property
    def error(self) -> float:
        """Standard error of a value of `smooth`."""
        return MEDIAN_ERROR * self.noise / math.sqrt(self.window) if self.window > 1 else self.noise

    def since(self, epoch: int) -> Curve:
        """The part from an epoch on."""
        kept = self.epochs >= epoch
        return Curve(self.epochs[kept], self.values[kept])


@dataclass(frozen=True)
class Trend:
    """A straight line through the last part of a curve.

    Attributes:
        epochs: From its first to its last.
        change: How much the line rises between them; below 0 it falls.
        error: Standard error of that.
    """

    epochs: int
    change: float
    error: float


def trend(curve: Curve) -> Trend:
    """Least squares through the last third of a curve, at least `FEW` values of it.

    Args:
        curve: Of 3 values or more.
    """
    count = max(len(curve) // 3, min(FEW, len(curve)))
    x, y = curve.epochs[-count:].astype(np.float64), curve.values[-count:]
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    residuals = y - y.mean() - slope * centred
    error = math.sqrt(float(residuals @ residuals) / max(count - 2, 1) / float(centred @ centred))
    span = float(x[-1] - x[0])
    return Trend(int(span) + 1, slope * span, error * span)
