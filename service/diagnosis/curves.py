"""Numerical analysis of learning curves: smoothing, noise, gaps and trends. Needs NumPy only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_WINDOW = 15  # largest number of epochs in the smoothing window
MIN_EPOCHS = 5  # with fewer values, nothing is smoothed and the noise is unknown
MEDIAN_ERROR = 1.25  # standard error of a median over that of a mean, for normal noise
MAD_TO_DEVIATION = 1.4826  # standard deviation over median absolute deviation, for normal noise


def best_epoch(accuracies: Sequence[float]) -> int | None:
    """Returns the index of the highest accuracy, the earliest of equal ones; None if no value is finite."""
    finite = [(-value, index) for index, value in enumerate(accuracies) if math.isfinite(value)]
    return min(finite)[1] if finite else None


def column(epochs: Sequence[Mapping[str, float]], key: str) -> list[float]:
    """Returns one metric over the epochs, NaN for an epoch without it; empty if no epoch has it."""
    if not any(key in epoch for epoch in epochs):
        return []
    return [float(epoch.get(key, math.nan)) for epoch in epochs]


def accuracy_gap(training: float, validation: float) -> float:
    """Returns training minus validation accuracy: positive values suggest overfitting."""
    return training - validation


def loss_gap(training: float, validation: float) -> float:
    """Returns validation minus training loss: positive values suggest overfitting."""
    return validation - training


@dataclass(frozen=True)
class Curve:
    """The finite values of one metric.

    Attributes:
        epochs: int64 `[n]`, epochs the values belong to, counted from 1 and ascending.
        values: float64 `[n]`, the value of each of these epochs.
    """

    epochs: NDArray[np.int64]
    values: NDArray[np.float64]

    @classmethod
    def from_epochs(cls, epochs: Sequence[Mapping[str, float]], key: str) -> Curve:
        """Builds the curve of a metric; epochs without a finite value are left out."""
        values = np.asarray(column(epochs, key) or [math.nan] * len(epochs), np.float64)
        is_finite = np.isfinite(values)
        return cls(np.flatnonzero(is_finite) + 1, values[is_finite])

    def __len__(self) -> int:
        return len(self.values)

    @property
    def window(self) -> int:
        """Epochs smoothed over: a sixth of all, odd, 3 to `MAX_WINDOW`; 1 below `MIN_EPOCHS` values."""
        if len(self) < MIN_EPOCHS:
            return 1
        odd = len(self) // 6 | 1
        return min(max(odd, 3), MAX_WINDOW)

    @property
    def smooth(self) -> NDArray[np.float64]:
        """Running median over `window` epochs, fewer at the ends; float64 `[n]`."""
        half = self.window // 2
        medians = [np.median(self.values[max(i - half, 0) : i + half + 1]) for i in range(len(self))]
        return np.array(medians)

    @property
    def noise(self) -> float:
        """Standard deviation of an epoch about the curve.

        Estimated from the median of the second differences, in which slopes cancel.
        """
        if len(self) < MIN_EPOCHS:
            return 0.0
        second_differences = np.diff(self.values, 2)  # their variance is 1 + 4 + 1 times that of a value
        return float(MAD_TO_DEVIATION * np.median(np.abs(second_differences)) / math.sqrt(6))

    @property
    def error(self) -> float:
        """Standard error of a value of `smooth`."""
        if self.window == 1:
            return self.noise
        return MEDIAN_ERROR * self.noise / math.sqrt(self.window)

    def since(self, epoch: int) -> Curve:
        """Returns the part of the curve from an epoch on."""
        is_later = self.epochs >= epoch
        return Curve(self.epochs[is_later], self.values[is_later])


@dataclass(frozen=True)
class Trend:
    """A straight line through the last part of a curve.

    Attributes:
        epochs: Number of epochs from the first to the last of that part.
        change: Rise of the line over these epochs; negative for a fall.
        error: Standard error of the change.
    """

    epochs: int
    change: float
    error: float


def fit_trend(curve: Curve) -> Trend:
    """Fits a line by least squares to the last third of a curve, at least `MIN_EPOCHS` values of it.

    Args:
        curve: Curve of at least 3 values.
    """
    count = max(len(curve) // 3, min(MIN_EPOCHS, len(curve)))
    x = curve.epochs[-count:].astype(np.float64)
    y = curve.values[-count:]
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread
    residuals = y - y.mean() - slope * centred
    error = math.sqrt(float(residuals @ residuals) / max(count - 2, 1) / spread)
    span = float(x[-1] - x[0])
    return Trend(int(span) + 1, slope * span, error * span)
