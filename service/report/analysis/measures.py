"""Measures the quality of heatmaps: dependence on the weights, faithfulness, and localization of objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray

from pipelines.records import Box
from service.report.rasters import resize_bilinear

Floats = NDArray[np.floating]
# Function of images [N, H, W, C] to probabilities [N, K].
PredictFunction = Callable[[Floats], Floats]

# Steps of a deletion or insertion curve.
STEPS = 10
# Distance within which two points count as the same, as a fraction of the image's side.
TOLERANCE = 0.1


def compute_ranks(values: Floats) -> Floats:
    """Computes ranks from 1, ties sharing their mean rank: `[n]` to float64 `[n]`."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last_ranks = np.cumsum(counts)
    mean_ranks = last_ranks - (counts - 1) / 2
    return np.asarray(mean_ranks[inverse], np.float64)


def spearman(a: Floats, b: Floats) -> float:
    """Computes the rank correlation of two maps of one shape (Spearman, 1904); 0 if one is constant."""
    x = compute_ranks(a.ravel())
    y = compute_ranks(b.ravel())
    x = x - x.mean()
    y = y - y.mean()
    norm = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / norm if norm > 0 else 0.0


@contextmanager
def randomize_weights(model: keras.Model, seed: int, last_only: bool = False) -> Iterator[None]:
    """Shuffles the values of every kernel within a block, and restores them after it.

    Each kernel keeps its mean and deviation, but loses its structure. This is the model parameter
    randomization test of Adebayo et al. (2018), "Sanity checks for saliency maps", with permutations instead
    of new values.

    Args:
        model: The model whose kernels are shuffled in place.
        seed: Seed of the permutations.
        last_only: Whether only the last kernel is shuffled.
    """
    variables = model.trainable_variables + model.non_trainable_variables
    kernels = [variable for variable in variables if len(variable.shape) >= 2]
    if last_only:
        kernels = kernels[-1:]
    originals = [np.array(kernel) for kernel in kernels]
    generator = np.random.default_rng(seed)
    try:
        for kernel, values in zip(kernels, originals, strict=True):
            kernel.assign(generator.permutation(values.ravel()).reshape(values.shape))
        yield
    finally:
        for kernel, values in zip(kernels, originals, strict=True):
            kernel.assign(values)


@dataclass(frozen=True)
class PerturbationCurves:
    """Deletion and insertion curves of N images (Petsiuk et al., 2018, RISE).

    Attributes:
        deletions: Probability with 0, 10, ... 100 % of the pixels removed, float64 `[N, STEPS + 1]`.
        insertions: Probability with 0, 10, ... 100 % of the pixels present, float64 `[N, STEPS + 1]`.
    """

    deletions: Floats
    insertions: Floats

    @property
    def deletion(self) -> Floats:
        """Mean deletion curve, float64 `[STEPS + 1]`."""
        return np.asarray(self.deletions.mean(axis=0))

    @property
    def insertion(self) -> Floats:
        """Mean insertion curve, float64 `[STEPS + 1]`."""
        return np.asarray(self.insertions.mean(axis=0))

    def compute_areas(self) -> tuple[Floats, Floats]:
        """Computes the areas under the curves of every image, in [0, 1]; small and large if faithful.

        Returns:
            Areas under the deletion and the insertion curves, float64 `[N]` each.
        """
        deletion = np.trapezoid(self.deletions, dx=1 / STEPS, axis=1)
        insertion = np.trapezoid(self.insertions, dx=1 / STEPS, axis=1)
        return np.asarray(deletion), np.asarray(insertion)


def compute_perturbation_curves(
    predict: PredictFunction, images: Floats, classes: NDArray[np.int64], maps: Floats, seed: int
) -> PerturbationCurves:
    """Replaces pixels by the image's mean colour, in the order of the heatmaps, the highest values first.

    Args:
        predict: Function of images `[N, H, W, C]` to probabilities `[N, K]`.
        images: Images `[N, H, W, C]`.
        classes: Classes whose probabilities are recorded, int `[N]`.
        maps: Heatmaps `[N, h, w]`; ties are broken at random.
        seed: Seed of the order among ties.
    """
    count, height, width, _ = images.shape
    generator = np.random.default_rng(seed)
    resized = np.stack([resize_bilinear(values, height, width).ravel() for values in maps])
    order = np.stack([np.lexsort((generator.random(len(values)), -values)) for values in resized])
    rank = np.argsort(order, axis=1).reshape(count, height, width, 1)  # 0 for the first pixel to remove
    mean_colour = images.mean(axis=(1, 2), keepdims=True)  # [N, 1, 1, C]
    rows = np.arange(count)
    deletions = []
    insertions = []
    for step in range(STEPS + 1):
        is_selected = rank < round(step / STEPS * height * width)
        without_selected = predict(np.where(is_selected, mean_colour, images))
        only_selected = predict(np.where(is_selected, images, mean_colour))
        deletions.append(without_selected[rows, classes])
        insertions.append(only_selected[rows, classes])
    return PerturbationCurves(
        np.stack(deletions, axis=1).astype(np.float64), np.stack(insertions, axis=1).astype(np.float64)
    )


def find_peak(values: Floats) -> tuple[float, float]:
    """Finds the first maximum of a map `[h, w]`: the centre `(y, x)` of its cell in [0, 1]."""
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return (row + 0.5) / values.shape[0], (column + 0.5) / values.shape[1]


def is_inside_box(point: tuple[float, float], box: Box) -> bool:
    """Tells whether a point `(y, x)` lies in a bounding box."""
    y, x = point
    top, left, bottom, right = box
    return top <= y <= bottom and left <= x <= right


def make_box_mask(shape: tuple[int, ...], box: Box) -> NDArray[np.bool_]:
    """Makes a mask of the cells of a map `(h, w)` whose centres lie in a bounding box, bool `[h, w]`."""
    height, width = shape
    top, left, bottom, right = box
    ys = (np.arange(height) + 0.5) / height
    xs = (np.arange(width) + 0.5) / width
    in_rows = (ys >= top) & (ys <= bottom)
    in_columns = (xs >= left) & (xs <= right)
    return np.asarray(in_rows[:, None] & in_columns)


def compute_box_energy(values: Floats, box: Box) -> float:
    """Computes the fraction of a map's sum that lies in a bounding box; 0 for an empty map.

    The energy-based pointing game of Wang et al. (2020), Score-CAM.
    """
    total = float(values.sum())
    if total <= 0:
        return 0.0
    return float(values[make_box_mask(values.shape, box)].sum()) / total


def compute_edge_strength(image: Floats, ignored_box: Box | None = None) -> Floats:
    """Computes the strength of edges around every pixel: the gradient of brightness, averaged over a window.

    The window has a tenth of the side of the image.

    Args:
        image: Image `[H, W, C]`.
        ignored_box: Bounding box whose edges do not count, those of its outline included.

    Returns:
        float64 `[H, W]`.
    """
    gradient_y, gradient_x = np.gradient(np.pad(image.mean(axis=2), 1, mode="edge"))
    strength = np.hypot(gradient_y, gradient_x)[1:-1, 1:-1]
    if ignored_box is not None:
        height, width = strength.shape
        top, left, bottom, right = ignored_box
        with_outline = (top - 2 / height, left - 2 / width, bottom + 2 / height, right + 2 / width)
        strength = np.where(make_box_mask(strength.shape, with_outline), 0, strength)
    radius = max(1, round(TOLERANCE * max(strength.shape) / 2))
    return _average_windows(strength, radius)


def _average_windows(values: Floats, radius: int) -> Floats:
    """Averages the square window around every cell of `[h, w]`, the edge repeated beyond it."""
    extended = np.pad(values, radius, mode="edge")
    # Sums of rectangles from cumulative sums, with a row and a column of zeros in front.
    sums = np.pad(extended, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    window = 2 * radius + 1
    windows = (
        sums[window:, window:] - sums[:-window, window:] - sums[window:, :-window] + sums[:-window, :-window]
    )
    return np.asarray(windows) / window**2


def find_distractor(image: Floats, box: Box) -> tuple[float, float]:
    """Finds the strongest edges outside a bounding box, at which a map of edges instead of classes peaks."""
    strength = compute_edge_strength(image, ignored_box=box)
    return find_peak(np.where(make_box_mask(strength.shape, box), -1, strength))


@dataclass(frozen=True)
class LocalizationScores:
    """Agreement of N heatmaps with known bounding boxes. Each score alone can be high for wrong heatmaps.

    Attributes:
        hits: Whether the maximum of a heatmap lies in the box, the pointing game of Zhang et al. (2016);
            bool `[N]`.
        energies: Fraction of a heatmap's sum that lies in the box (Wang et al., 2020), float64 `[N]`.
        distractions: Whether the maximum lies at the strongest edges outside the box, bool `[N]`.
        chance: Mean area of the boxes, which is the score of random heatmaps in pointing game and energy.
    """

    hits: NDArray[np.bool_]
    energies: Floats
    distractions: NDArray[np.bool_]
    chance: float


def score_localization(
    maps: Sequence[Floats], images: Sequence[Floats], boxes: Sequence[Box]
) -> LocalizationScores:
    """Scores heatmaps against the bounding boxes of the objects; an empty heatmap scores 0.

    Args:
        maps: Heatmaps `[h, w]`, at least 0.
        images: Images `[H, W, C]` that the heatmaps explain.
        boxes: Bounding box of the object in every image.
    """
    hits = []
    energies = []
    distractions = []
    areas = []
    for values, image, box in zip(maps, images, boxes, strict=True):
        height, width, _ = image.shape
        resized = resize_bilinear(values, height, width)
        is_empty = not values.any()
        peak_y, peak_x = find_peak(resized)
        distractor_y, distractor_x = find_distractor(image, box)
        distance = np.hypot(peak_y - distractor_y, peak_x - distractor_x)
        hits.append(not is_empty and is_inside_box((peak_y, peak_x), box))
        energies.append(compute_box_energy(resized, box))
        distractions.append(not is_empty and distance <= TOLERANCE)
        top, left, bottom, right = box
        areas.append((bottom - top) * (right - left))
    return LocalizationScores(
        hits=np.array(hits, np.bool_),
        energies=np.array(energies, np.float64),
        distractions=np.array(distractions, np.bool_),
        chance=float(np.mean(areas)),
    )
