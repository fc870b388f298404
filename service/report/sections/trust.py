"""Sanity checks of the heatmaps: whether they depend on weights and class, and find the object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipelines.records import Box
from service.inference.classifier import Predictions
from service.report.analysis.gradcam import BATCH, CamExtractor
from service.report.analysis.images import Images
from service.report.analysis.measures import (
    STEPS,
    PerturbationCurves,
    compute_perturbation_curves,
    randomize_weights,
    score_localization,
    spearman,
)
from service.report.analysis.network import Network
from service.report.drawing.formatting import percent
from service.report.drawing.plots import Line, Plot
from service.report.sections.section import Section

RANDOMIZATIONS = 3  # sets of shuffled weights, whose correlations are averaged
# Thresholds of the checks.
SAME_WEIGHTS = 0.999  # at least: correlation of heatmaps computed twice
SHUFFLED_WEIGHTS = 0.3  # below: absolute correlation with heatmaps of shuffled weights
SECOND_CLASS = 0.5  # below: correlation with heatmaps of the second most probable class
POINTING = 0.95  # at least: share of heatmaps that peak inside the bounding box
ENERGY = 0.35  # at least: share of a heatmap's sum inside the bounding box
DISTRACTED = 0.05  # at most: share of heatmaps that peak at the strongest edges elsewhere

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class SanityCheck:
    """One test that meaningful heatmaps pass.

    Attributes:
        name: Name of the test.
        value: The measured value.
        requirement: Condition on the value, as text.
        is_passed: Whether the value meets the requirement.
        message: One sentence that interprets the value.
    """

    name: str
    value: float
    requirement: str
    is_passed: bool
    message: str

    def figures(self) -> dict[str, Any]:
        """Returns the check for the manifest."""
        return {
            "name": self.name,
            "value": self.value,
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

    extractor = CamExtractor(network, [layer], ["signed"], classes=3)
    classes = np.stack([predicted, second, truth], axis=1)  # [N, 3]
    maps = _compute_maps(extractor, pixels, classes)  # [N, 3, h, w]
    checks = check_randomization(*_correlate_with_other_weights(extractor, pixels, classes, maps, seed))
    checks.append(check_second_class(compute_mean_correlation(maps[:, 0], maps[:, 1])))
    by_map, by_chance = _compute_curves(network, pixels, predicted, maps[:, 0], seed)
    checks += check_perturbations(by_map, by_chance)
    boxes = images.read_bboxes(rows)
    with_box = [n for n, box in enumerate(boxes) if box is not None]
    if with_box:
        checks += check_localization(
            [np.maximum(maps[n, 2], 0) for n in with_box],
            [pixels[n] for n in with_box],
            [boxes[n] for n in with_box],
        )
    values = {
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


def compute_mean_correlation(maps: Floats, others: Floats) -> float:
    """Computes the mean rank correlation of heatmaps `[N, h, w]`, each with its counterpart in `others`."""
    return float(np.mean([spearman(a, b) for a, b in zip(maps, others, strict=True)]))


def check_randomization(same: float, shuffled: float) -> list[SanityCheck]:
    """Checks that heatmaps are reproducible, and that they change with the weights.

    Args:
        same: Correlation with the heatmaps of the same weights, computed again.
        shuffled: Correlation with the heatmaps of shuffled weights.
    """
    depends_on_weights = abs(shuffled) < SHUFFLED_WEIGHTS
    if depends_on_weights:
        effect = "changes the heatmaps"
        conclusion = "they show what the model learned"
    else:
        effect = "hardly changes the heatmaps"
        conclusion = "they show the image, not what the model learned"
    return [
        SanityCheck(
            "Reproducibility",
            same,
            "1.00",
            same > SAME_WEIGHTS,
            f"Computed again with the same weights, the heatmaps correlate by {same:.2f} (Spearman).",
        ),
        SanityCheck(
            "Weight randomization",
            shuffled,
            f"between -{SHUFFLED_WEIGHTS} and {SHUFFLED_WEIGHTS}",
            depends_on_weights,
            f"Shuffling the weights {effect} (Spearman {shuffled:.2f}): {conclusion}.",
        ),
    ]


def check_second_class(correlation: float) -> SanityCheck:
    """Checks that heatmaps depend on the class: a map that is the same for all classes explains none of them.

    Args:
        correlation: Correlation of the heatmaps of the two most probable classes.
    """
    is_different = correlation < SECOND_CLASS
    verdict = "differs" if is_different else "is much the same"
    return SanityCheck(
        "Class sensitivity",
        correlation,
        f"below {SECOND_CLASS}",
        is_different,
        f"The heatmap of the second most probable class {verdict} (Spearman {correlation:.2f}).",
    )


def check_perturbations(by_map: PerturbationCurves, by_chance: PerturbationCurves) -> list[SanityCheck]:
    """Checks that the pixels a heatmap marks matter more to the prediction than random pixels.

    Args:
        by_map: Curves with the pixels in the order of the heatmaps, the brightest first.
        by_chance: Curves with the pixels in random order.
    """
    deletion, insertion = by_map.auc
    random_deletion, random_insertion = by_chance.auc
    falls_faster = deletion < random_deletion
    rises_faster = insertion > random_insertion
    return [
        SanityCheck(
            "Deletion",
            deletion,
            f"below {random_deletion:.2f} (random order)",
            falls_faster,
            f"Removing the brightest places first lowers the probability {_describe_speed(falls_faster)} "
            f"than random order (area {deletion:.2f}, random {random_deletion:.2f}).",
        ),
        SanityCheck(
            "Insertion",
            insertion,
            f"above {random_insertion:.2f} (random order)",
            rises_faster,
            f"Revealing the brightest places first raises the probability {_describe_speed(rises_faster)} "
            f"than random order (area {insertion:.2f}, random {random_insertion:.2f}).",
        ),
    ]


def check_localization(
    maps: Sequence[Floats], images: Sequence[Floats], boxes: Sequence[Box]
) -> list[SanityCheck]:
    """Checks that heatmaps find the object, by three scores that are conclusive only together.

    Args:
        maps: Heatmaps `[h, w]` of the true classes, at least 0.
        images: The images they belong to, `[H, W, C]`.
        boxes: Bounding box of the object in each image.
    """
    scores = score_localization(maps, images, boxes)
    chance = f"(random: {percent(scores.chance, 0)})"
    return [
        SanityCheck(
            "Pointing game",
            scores.pointing_game,
            f"at least {POINTING}",
            scores.pointing_game >= POINTING,
            f"{percent(scores.pointing_game)} of the heatmaps peak on the object {chance}.",
        ),
        SanityCheck(
            "Energy in the bounding box",
            scores.energy,
            f"at least {ENERGY}",
            scores.energy >= ENERGY,
            f"{percent(scores.energy)} of the heatmap energy lies on the object {chance}.",
        ),
        SanityCheck(
            "Distraction by edges",
            scores.distraction,
            f"at most {DISTRACTED}",
            scores.distraction <= DISTRACTED,
            f"{percent(scores.distraction)} of the heatmaps peak at the strongest edges outside the object.",
        ),
    ]


def _describe_speed(is_faster: bool) -> str:
    return "faster" if is_faster else "no faster"


def _compute_maps(extractor: CamExtractor, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns signed heatmaps `[N, M, h, w]` of the extractor's only layer."""
    (maps,) = extractor(pixels, classes).maps.values()
    return maps


def _correlate_with_other_weights(
    extractor: CamExtractor, pixels: np.ndarray, classes: np.ndarray, maps: np.ndarray, seed: int
) -> tuple[float, float]:
    """Computes the correlation with heatmaps of the same weights, and the mean one for shuffled weights."""
    correlations = []
    for draw in range(RANDOMIZATIONS):
        with randomize_weights(extractor.network.model, seed + draw):
            shuffled = _compute_maps(extractor, pixels, classes)
        correlations.append(compute_mean_correlation(maps[:, 0], shuffled[:, 0]))
    again = _compute_maps(extractor, pixels, classes)
    return compute_mean_correlation(maps[:, 0], again[:, 0]), float(np.mean(correlations))


def _compute_curves(
    network: Network, pixels: np.ndarray, classes: np.ndarray, maps: np.ndarray, seed: int
) -> tuple[PerturbationCurves, PerturbationCurves]:
    """Computes the curves in the order of the heatmaps, and of random maps of the same size."""
    graph = network.compile_graph(lambda x: tf.nn.softmax(network.run(x).logits))

    def predict(images: np.ndarray) -> np.ndarray:
        batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        return np.concatenate([graph(batch).numpy() for batch in batches])

    images = pixels.astype(np.float32)
    random_maps = np.random.default_rng(seed).normal(size=maps.shape).astype(np.float32)
    by_map = compute_perturbation_curves(predict, images, classes, maps, seed)
    by_chance = compute_perturbation_curves(predict, images, classes, random_maps, seed)
    return by_map, by_chance


def _plots(by_map: PerturbationCurves, by_chance: PerturbationCurves) -> list[Plot]:
    percentages = [step * 100 / STEPS for step in range(STEPS + 1)]
    curves = (
        ("Probability as places are removed", "% removed", by_map.deletion, by_chance.deletion),
        ("Probability as places are revealed", "% revealed", by_map.insertion, by_chance.insertion),
    )
    plots = []
    for title, x_label, ordered, random in curves:
        lines = (
            Line("brightest first", ordered.tolist(), "a"),
            Line("random order", random.tolist(), "b"),
        )
        plots.append(Plot(title, x_label, percentages, lines, percent=True))
    return plots
