"""Sanity checks of the heatmaps: whether they depend on weights and class, and find the object."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.records import Box
from service.inference.classifier import Predictions
from service.report.analysis.gradcam import CamExtractor
from service.report.analysis.images import Images
from service.report.analysis.measures import (
    STEPS,
    PerturbationCurves,
    score_localization,
)
from service.report.analysis.network import Network
from service.report.analysis.sanity import (
    compute_curves,
    compute_maps,
    compute_shuffled_maps,
    correlate,
    correlate_with_shuffled,
)
from service.report.drawing.formatting import decimal, percent
from service.report.drawing.plots import Line, Plot
from service.report.sections.section import Section
from service.scores import bootstrap_interval, is_better_than_majority, majority_class_share

# Thresholds of the checks.
SAME_WEIGHTS = 0.999  # at least: correlation of heatmaps computed twice
SHUFFLED_WEIGHTS = 0.3  # below: absolute correlation with heatmaps of shuffled weights
SECOND_CLASS = 0.5  # below: correlation with heatmaps of the second most probable class
POINTING = 0.95  # at least: share of heatmaps that peak inside the bounding box
ENERGY = 0.35  # at least: share of a heatmap's sum inside the bounding box
DISTRACTED = 0.05  # at most: share of heatmaps that peak at the strongest edges elsewhere
SMALLEST = math.ulp(0.0)  # a heatmap that is exactly as good as a random order marks nothing

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class SanityCheck:
    """One test that meaningful heatmaps pass, measured on a sample of images.

    Attributes:
        name: Name of the test.
        value: Mean of the measured value over the images.
        interval: 95 % confidence interval of the mean, from the bootstrap over images.
        requirement: Condition on the value, as text.
        bounds: Range that the condition allows.
        message: One sentence that interprets the value.
        has_verdict: Whether the test can pass or fail: not for a model that has learned nothing, whose
            heatmaps have nothing to show.
    """

    name: str
    value: float
    interval: tuple[float, float]
    requirement: str
    bounds: tuple[float, float]
    message: str
    has_verdict: bool = True

    @property
    def is_passed(self) -> bool | None:
        """True if the whole interval meets the requirement, False if none of it does, None otherwise."""
        if not self.has_verdict:
            return None
        low, high = self.interval
        lower, upper = self.bounds
        if lower <= low and high <= upper:
            return True
        return False if high < lower or low > upper else None

    @property
    def outcome(self) -> str:
        """The result in one word or two."""
        if not self.has_verdict:
            return "no verdict"
        return {True: "passed", False: "failed", None: "inconclusive"}[self.is_passed]

    def figures(self) -> dict[str, Any]:
        """Returns the check for the manifest."""
        low, high = self.interval
        return {
            "name": self.name,
            "value": self.value,
            "interval": [low, high] if math.isfinite(low) else None,
            "needs": self.requirement,
            "passed": self.is_passed,
            "words": self.message,
        }


def build_section(
    network: Network,
    predictions: Predictions,
    images: Images,
    count: int,
    seed: int,
) -> Section | None:
    """Tests Grad-CAM of the last feature map on random images of the evaluated split.

    Args:
        network: Network whose heatmaps are tested.
        predictions: Predictions for the evaluated split.
        images: Split the predictions were computed on.
        count: Number of images, at most; 0 leaves the section out.
        seed: Seed of the choice of images, of shuffled weights and of random orders.

    Returns:
        The section; None for a network without feature maps.
    """
    total = len(predictions.rows)
    if network.last_feature_map is None or not count or not total:
        return None
    layer = network.last_feature_map.name
    indices = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))
    rows = predictions.rows[indices].tolist()
    pixels = images.read(rows)
    predicted = predictions.classes[indices].astype(np.int64)
    truth = predictions.labels[indices].astype(np.int64)
    second = np.argsort(-predictions.probabilities[indices], axis=1, kind="stable")[:, 1]

    has_learned = is_better_than_majority(predictions.classes, predictions.labels, seed)

    extractor = CamExtractor(network, [layer], ["signed"], classes=3)
    classes = np.stack([predicted, second, truth], axis=1)  # [N, 3]
    maps = compute_maps(extractor, pixels, classes)  # [N, 3, h, w]
    again = compute_maps(extractor, pixels, classes)
    shuffled = compute_shuffled_maps(extractor, pixels, classes, seed)
    same = correlate(maps[:, 0], again[:, 0])
    checks = check_randomization(same, correlate_with_shuffled(maps[:, 0], shuffled[:, :, 0]), seed)
    if not network.has_one_unit:  # a single logit has one heatmap; its negative is that of the other class
        checks.append(check_second_class(correlate(maps[:, 0], maps[:, 1]), seed))
    by_map, by_chance = compute_curves(network, pixels, predicted, maps[:, 0], seed)
    checks += check_perturbations(by_map, by_chance, seed)
    boxes = images.read_bboxes(rows)
    with_box = [n for n, box in enumerate(boxes) if box is not None]
    if with_box:
        checks += check_localization(
            [np.maximum(maps[n, 2], 0) for n in with_box],
            [pixels[n] for n in with_box],
            [boxes[n] for n in with_box],
            seed,
        )
    checks = [replace(check, has_verdict=has_learned) for check in checks]
    values = {
        "has_learned": has_learned,
        "accuracy": predictions.accuracy,
        "baseline": majority_class_share(predictions.labels),
        "images": len(rows),
        "split": images.split,
        "layer": layer,
        "checks": checks,
        "plots": _plots(by_map, by_chance),
        "boxes": len(with_box),
    }
    figures = {
        "checks": [check.figures() for check in checks],
        "rows": rows,
        "layer": layer,
        "seed": seed,
        "deletion": {"by_map": by_map.deletion.tolist(), "by_chance": by_chance.deletion.tolist()},
        "insertion": {"by_map": by_map.insertion.tolist(), "by_chance": by_chance.insertion.tolist()},
    }
    return Section("trust", "Heatmap sanity checks", values, figures)


def check_randomization(same: Floats, shuffled: Floats, seed: int) -> list[SanityCheck]:
    """Checks that heatmaps are reproducible, and that they change with the weights.

    Args:
        same: Correlation of every heatmap with that of the same weights, computed again, `[N]`.
        shuffled: Correlation of every heatmap with that of shuffled weights, `[N]`.
        seed: Seed of the bootstrap.
    """
    value = float(same.mean())
    reproducibility = _build_check(
        "Reproducibility",
        same,
        seed,
        "1.00",
        (SAME_WEIGHTS, math.inf),
        f"Computed again with the same weights, the heatmaps correlate by {decimal(value)} (Spearman).",
    )
    value = float(shuffled.mean())
    randomization = _build_check(
        "Weight randomization",
        shuffled,
        seed,
        f"between {decimal(-SHUFFLED_WEIGHTS, 1)} and {decimal(SHUFFLED_WEIGHTS, 1)}",
        (-SHUFFLED_WEIGHTS, SHUFFLED_WEIGHTS),
        f"With shuffled weights, the heatmaps correlate by {decimal(value)} (Spearman): ",
    )
    conclusion = {
        True: "they depend on the weights.",
        False: "they hardly depend on the weights, and show the image instead.",
        None: "too uncertain to tell whether they depend on the weights.",
    }[randomization.is_passed]
    return [reproducibility, replace(randomization, message=randomization.message + conclusion)]


def check_second_class(correlations: Floats, seed: int) -> SanityCheck:
    """Checks that heatmaps depend on the class: a map that is the same for all classes explains none of them.

    Args:
        correlations: Correlation of the heatmaps of the two most probable classes per image, `[N]`.
        seed: Seed of the bootstrap.
    """
    value = float(correlations.mean())
    verdict = "differs" if value <= SECOND_CLASS else "is much the same"
    return _build_check(
        "Class sensitivity",
        correlations,
        seed,
        f"at most {SECOND_CLASS}",
        (-math.inf, SECOND_CLASS),
        f"The heatmap of the second most probable class {verdict} (Spearman {decimal(value)}).",
    )


def check_perturbations(
    by_map: PerturbationCurves, by_chance: PerturbationCurves, seed: int
) -> list[SanityCheck]:
    """Checks that the pixels a heatmap marks matter more to the prediction than random pixels.

    The value is the difference between the areas under the two curves of an image.

    Args:
        by_map: Curves with the pixels in the order of the heatmaps, the brightest first.
        by_chance: Curves with the pixels in random order.
        seed: Seed of the bootstrap.
    """
    deletion, insertion = by_map.compute_areas()
    random_deletion, random_insertion = by_chance.compute_areas()
    falls_faster = deletion.mean() < random_deletion.mean()
    rises_faster = insertion.mean() > random_insertion.mean()
    return [
        _build_check(
            "Deletion",
            deletion - random_deletion,
            seed,
            "less than 0",
            (-math.inf, -SMALLEST),
            f"Removing the brightest places first lowers the probability {_describe_speed(falls_faster)} "
            f"than random order (area {deletion.mean():.2f}, random {random_deletion.mean():.2f}).",
        ),
        _build_check(
            "Insertion",
            insertion - random_insertion,
            seed,
            "more than 0",
            (SMALLEST, math.inf),
            f"Revealing the brightest places first raises the probability {_describe_speed(rises_faster)} "
            f"than random order (area {insertion.mean():.2f}, random {random_insertion.mean():.2f}).",
        ),
    ]


def check_localization(
    maps: Sequence[Floats], images: Sequence[Floats], boxes: Sequence[Box], seed: int
) -> list[SanityCheck]:
    """Checks that heatmaps find the object, by three scores that are conclusive only together.

    Args:
        maps: Heatmaps `[h, w]` of the true classes, at least 0.
        images: The images they belong to, `[H, W, C]`.
        boxes: Bounding box of the object in each image.
        seed: Seed of the bootstrap.
    """
    scores = score_localization(maps, images, boxes)
    chance = f"(random: {percent(scores.chance, 0)})"
    hits = float(scores.hits.mean())
    energy = float(scores.energies.mean())
    distraction = float(scores.distractions.mean())
    return [
        _build_check(
            "Pointing game",
            scores.hits,
            seed,
            f"at least {POINTING}",
            (POINTING, math.inf),
            f"{percent(hits)} of the heatmaps peak on the object {chance}.",
        ),
        _build_check(
            "Energy in the bounding box",
            scores.energies,
            seed,
            f"at least {ENERGY}",
            (ENERGY, math.inf),
            f"{percent(energy)} of the heatmap energy lies on the object {chance}.",
        ),
        _build_check(
            "Distraction by edges",
            scores.distractions,
            seed,
            f"at most {DISTRACTED}",
            (-math.inf, DISTRACTED),
            f"{percent(distraction)} of the heatmaps peak at the strongest edges outside the object.",
        ),
    ]


def _build_check(
    name: str,
    values: Floats | NDArray[np.bool_],
    seed: int,
    requirement: str,
    bounds: tuple[float, float],
    message: str,
) -> SanityCheck:
    """Builds a check from the values of the images, `[N]`."""
    interval = bootstrap_interval(values, seed)
    return SanityCheck(name, float(values.mean()), interval, requirement, bounds, message)


def _describe_speed(is_faster: bool) -> str:
    return "faster" if is_faster else "no faster"


def _plots(by_map: PerturbationCurves, by_chance: PerturbationCurves) -> list[Plot]:
    percentages = [step * 100 / STEPS for step in range(STEPS + 1)]
    curves = (
        (
            "Probability as places are removed",
            "% removed",
            by_map.deletion,
            by_chance.deletion,
            "Mean probability of the predicted class while more and more of the image is removed (deletion). "
            "A heatmap that marks what matters makes it fall faster than a random order does.",
        ),
        (
            "Probability as places are revealed",
            "% revealed",
            by_map.insertion,
            by_chance.insertion,
            "The opposite: more and more of the image is revealed (insertion). A heatmap that marks what "
            "matters makes the probability rise faster than a random order does.",
        ),
    )
    plots = []
    for title, x_label, ordered, random, caption in curves:
        lines = (
            Line("brightest first", ordered.tolist(), "a"),
            Line("random order", random.tolist(), "b"),
        )
        plots.append(Plot(title, x_label, percentages, lines, percent=True, caption=caption))
    return plots
