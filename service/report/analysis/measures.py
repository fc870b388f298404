"""Measures of what a heatmap is worth: does it follow the weights, does it name what the answer hangs on, does it find the object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray

from pipelines.records import Box
from service.report.drawing.heatmap import resized

Floats = NDArray[np.floating]
Answer = Callable[[Floats], Floats]  # images [N, H, W, C] to probabilities [N, K]

STEPS = 10  # of a deletion or insertion
NEAR = 0.1  # of the picture's side: as near as this counts as the same place


def ranks(values: Floats) -> Floats:
    """Ranks from 1, ties sharing their mean rank: `[n]` to float64 `[n]`."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[places], np.float64)


def spearman(a: Floats, b: Floats) -> float:
    """Rank correlation of two maps of one shape (Spearman, 1904); 0 where one is the same everywhere."""
    x, y = ranks(a.ravel()), ranks(b.ravel())
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / norm if norm > 0 else 0.0


@contextmanager
def randomized(model: keras.Model, seed: int, last_only: bool = False) -> Iterator[None]:
    """Shuffles the values of every kernel for the length of a block, or those of the last one alone.

    Each kernel keeps its mean and deviation and loses what it learned (after Adebayo et al., 2018, Sanity Checks for Saliency Maps).
    """
    kernels = [
        variable
        for variable in model.trainable_variables + model.non_trainable_variables
        if len(variable.shape) >= 2
    ]
    kernels = kernels[-1:] if last_only else kernels
    kept = [np.array(kernel) for kernel in kernels]
    generator = np.random.default_rng(seed)
    try:
        for kernel, values in zip(kernels, kept, strict=True):
            kernel.assign(generator.permutation(values.ravel()).reshape(values.shape))
        yield
    finally:
        for kernel, values in zip(kernels, kept, strict=True):
            kernel.assign(values)


@dataclass(frozen=True)
class Removal:
    """How a class's probability changes while places of images are removed, or brought back, in some order.

    Attributes:
        deletion: float64 `[STEPS + 1]`, mean probability with 0, 10, ... 100 % of the places removed.
        insertion: float64 `[STEPS + 1]`, with as many of them there and all others removed.
    """

    deletion: Floats
    insertion: Floats

    @property
    def areas(self) -> tuple[float, float]:
        """Areas under both curves, in [0, 1]: a good order has a small one and a large one (Petsiuk et al., 2018)."""
        return float(np.trapezoid(self.deletion, dx=1 / STEPS)), float(
            np.trapezoid(self.insertion, dx=1 / STEPS)
        )


def removal(answer: Answer, images: Floats, classes: NDArray[np.int64], maps: Floats, seed: int) -> Removal:
    """Removes the places of images in the order of their maps, the highest first; what is removed takes the image's mean colour.

    Args:
        answer: Probabilities of images `[N, H, W, C]`.
        images: `[N, H, W, C]`.
        classes: int `[N]`, whose probabilities are followed.
        maps: `[N, h, w]`; ties are broken by chance.
        seed: Of that chance.
    """
    count, height, width, _ = images.shape
    chance = np.random.default_rng(seed)
    values = np.stack([resized(map_, height, width).ravel() for map_ in maps])
    order = np.stack([np.lexsort((chance.random(len(v)), -v)) for v in values])
    place = np.argsort(order, axis=1).reshape(count, height, width, 1)  # 0 for the first to go
    mean = images.mean(axis=(1, 2), keepdims=True)
    curves = []
    for step in range(STEPS + 1):
        gone = place < round(step / STEPS * height * width)
        both = [answer(np.where(gone, mean, images)), answer(np.where(gone, images, mean))]
        curves.append([float(p[np.arange(count), classes].mean()) for p in both])
    return Removal(*np.array(curves).T)


def peak(values: Floats) -> tuple[float, float]:
    """Where a map `[h, w]` is highest: `(y, x)` of the cell's centre in [0, 1]; of equals the first."""
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return (row + 0.5) / values.shape[0], (column + 0.5) / values.shape[1]


def inside(place: tuple[float, float], box: Box) -> bool:
    """Whether a place lies in a box."""
    return box[0] <= place[0] <= box[2] and box[1] <= place[1] <= box[3]


def energy(values: Floats, box: Box) -> float:
    """The share of a map's sum that lies in a box (Wang et al., 2020); 0 for an empty map."""
    total = float(values.sum())
    return float(values[within(values.shape, box)].sum()) / total if total > 0 else 0.0


def within(shape: tuple[int, ...], box: Box) -> NDArray[np.bool_]:
    """Which cells of a map `(h, w)` have their centres in a box, bool `[h, w]`."""
    ys, xs = ((np.arange(side) + 0.5) / side for side in shape)
    return np.asarray(((ys >= box[0]) & (ys <= box[2]))[:, None] & ((xs >= box[1]) & (xs <= box[3])))


def edges(image: Floats, without: Box | None = None) -> Floats:
    """How hard edges are around every pixel: gradients of brightness, averaged over a tenth of the side.

    Args:
        image: `[H, W, C]`.
        without: A box whose edges do not count, its outline among them.

    Returns:
        float64 `[H, W]`.
    """
    down, right = np.gradient(np.pad(image.mean(axis=2), 1, mode="edge"))
    hard = np.hypot(down, right)[1:-1, 1:-1]
    if without is not None:
        height, width = hard.shape
        around = (
            without[0] - 2 / height,
            without[1] - 2 / width,
            without[2] + 2 / height,
            without[3] + 2 / width,
        )
        hard = np.where(within(hard.shape, around), 0, hard)
    side = max(1, round(NEAR * max(hard.shape) / 2))
    sums = np.pad(np.pad(hard, side, mode="edge"), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    window = 2 * side + 1
    return (
        np.asarray(
            sums[window:, window:]
            - sums[:-window, window:]
            - sums[window:, :-window]
            + sums[:-window, :-window]
        )
        / window**2
    )


def distraction(image: Floats, box: Box) -> tuple[float, float]:
    """The hardest edges of an image outside a box: where a map looks that sees edges and no classes."""
    values = edges(image, without=box)
    return peak(np.where(within(values.shape, box), -1, values))


@dataclass(frozen=True)
class Found:
    """How well maps find known boxes, over all images; each figure alone is passed by some wrong map.

    Attributes:
        pointing: Share of maps whose maximum lies in the box (Zhang et al., 2016).
        energy: Mean share of a map that lies in the box.
        distracted: Share of maps whose maximum lies at the hardest edges outside the box.
        chance: The mean area of the boxes: what a map of noise reaches in the first two.
    """

    pointing: float
    energy: float
    distracted: float
    chance: float


def found(maps: Sequence[Floats], images: Sequence[Floats], boxes: Sequence[Box]) -> Found:
    """Holds maps `[h, w]`, at least 0, of images `[H, W, C]` against boxes; an empty map finds nothing."""
    points, shares, distracted = [], [], []
    for values, image, box in zip(maps, images, boxes, strict=True):
        shown = resized(values, *image.shape[:2])
        (y, x), (edge_y, edge_x) = peak(shown), distraction(image, box)
        points.append(bool(values.any()) and inside((y, x), box))
        shares.append(energy(shown, box))
        distracted.append(bool(values.any()) and np.hypot(y - edge_y, x - edge_x) <= NEAR)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in boxes]
    return Found(
        float(np.mean(points)), float(np.mean(shares)), float(np.mean(distracted)), float(np.mean(areas))
    )
