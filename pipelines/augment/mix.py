"""Random erasing, mixup and cutmix: boxes, and shares in a blend of two neighbours of a batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.augment.geometry import Boxes, between, log_between, placed
from pipelines.augment.philox import Floats, Number
from pipelines.spec import AugmentSpec

ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)  # width over height
TABLE = 513  # points of the distribution function of a Beta distribution


def erased_boxes(
    spec: AugmentSpec, numbers: Floats, rows: ArrayLike, aspect: float = 1.0
) -> NDArray[np.float32]:
    """Random erasing (Zhong et al., "Random erasing data augmentation", 2017), uniform in the logarithm of the ratio.

    Args:
        spec: `erase` is the probability.
        numbers: Of these rows, from `philox.uniform`.
        rows: Rows of the split, `[n]`; -1 is padding, of which nothing is erased.
        aspect: Width over height of the images in pixels.

    Returns:
        float32 `[n, 4]`: `(ymin, xmin, ymax, xmax)` in [0, 1]; zeros for none.
    """
    area = between(*ERASED_AREA, numbers[Number.ERASE_AREA])
    ratio = log_between(*ERASED_RATIO, numbers[Number.ERASE_RATIO]) / aspect
    boxes = placed(area, ratio, numbers[Number.ERASE_Y], numbers[Number.ERASE_X])
    return _corners(boxes, (np.asarray(rows) >= 0) & (numbers[Number.ERASE] < spec.erase))


def mixup_shares(spec: AugmentSpec, numbers: Floats, rows: ArrayLike) -> NDArray[np.float32]:
    """Mixup (Zhang et al., "mixup: beyond empirical risk minimization", 2017): each image with its neighbour, by its own share.

    Args:
        spec: `mixup` is the parameter of the Beta distribution.
        numbers: Of these rows, from `philox.uniform`.
        rows: Rows of the split in the order of the batch, `[n]`, n even.

    Returns:
        float32 `[n]`: the share of the image itself; 1 for none.
    """
    mixed = _paired(rows)
    if spec.cutmix:
        mixed &= numbers[Number.MIXUP_OR_CUTMIX] < 0.5
    return np.where(mixed, symmetric_beta(spec.mixup, numbers[Number.MIXUP]), 1.0).astype(np.float32)


def cutmix_boxes(spec: AugmentSpec, numbers: Floats, rows: ArrayLike) -> NDArray[np.float32]:
    """Cutmix (Yun et al., "CutMix", 2019): a box of the neighbour, with its centre anywhere, cut off at the edges.

    Args:
        spec: `cutmix` is the parameter of the Beta distribution of the area left, before the cut at the edges.
        numbers: Of these rows, from `philox.uniform`.
        rows: Rows of the split in the order of the batch, `[n]`, n even.

    Returns:
        float32 `[n, 4]`: `(ymin, xmin, ymax, xmax)` in [0, 1]; zeros for none.
    """
    mixed = _paired(rows)
    if spec.mixup:
        mixed &= numbers[Number.MIXUP_OR_CUTMIX] >= 0.5
    side = np.sqrt(1.0 - symmetric_beta(spec.cutmix, numbers[Number.CUTMIX]))
    top, left = (numbers[centre] - side / 2.0 for centre in (Number.CUT_Y, Number.CUT_X))
    return _corners(Boxes(top, left, side, side), mixed)


def symmetric_beta(alpha: float, number: Floats) -> Floats:
    """Numbers in [0, 1) brought to the distribution Beta(alpha, alpha), by the inverse of its distribution function.

    One half of the function is tabulated, the other is its mirror image. With `x = t ** (1 / alpha)` the density
    loses its pole: it is `(1 - x) ** (alpha - 1)` over t, between 1 and 2.

    Args:
        alpha: In (0, 1].
        number: float64 `[n]`.
    """
    t = np.linspace(0.0, 0.5**alpha, TABLE)
    density = (1.0 - t ** (1.0 / alpha)) ** (alpha - 1.0)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    lower = np.interp(np.minimum(number, 1.0 - number), below / (2.0 * below[-1]), t) ** (1.0 / alpha)
    return np.where(number < 0.5, lower, 1.0 - lower)


def _paired(rows: ArrayLike) -> NDArray[np.bool_]:
    """Whether an image and its neighbour, at places 2i and 2i + 1, are both there, bool `[n]`."""
    pairs = np.asarray(rows).reshape(-1, 2)
    return np.repeat((pairs >= 0).all(axis=1), 2)


def _corners(boxes: Boxes, there: NDArray[np.bool_]) -> NDArray[np.float32]:
    """`(ymin, xmin, ymax, xmax)`, cut off at the edges; zeros where there is none, `[n, 4]`."""
    top, left, height, width = boxes
    corners = np.stack([top, left, top + height, left + width], axis=-1)
    return np.where(there[:, None], np.clip(corners, 0.0, 1.0), 0.0).astype(np.float32)
