"""Quantiles of the symmetric Beta distribution, from which mixup and cutmix draw."""

from __future__ import annotations

import numpy as np

from pipelines.augment.philox import Floats

POINTS = 513  # number of points in the tabulated distribution function


def symmetric_beta(alpha: float, number: Floats) -> Floats:
    """Maps uniform numbers to the distribution Beta(alpha, alpha), by its inverse distribution function.

    One half of the function is tabulated, the other is its mirror image. Substituting `x = t ** (1 / alpha)`
    removes the pole of the density: over t, it is `(1 - x) ** (alpha - 1)`, between 1 and 2.

    Args:
        alpha: Parameter of the distribution, in (0, 1].
        number: float64 `[n]` in [0, 1).

    Returns:
        float64 `[n]` in [0, 1].
    """
    t = np.linspace(0.0, 0.5**alpha, POINTS)
    density = (1.0 - t ** (1.0 / alpha)) ** (alpha - 1.0)
    cumulative = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    probability = cumulative / (2.0 * cumulative[-1])
    lower = np.interp(np.minimum(number, 1.0 - number), probability, t) ** (1.0 / alpha)
    return np.where(number < 0.5, lower, 1.0 - lower)
