"""Two models on the same images: which is better, where they disagree, and on what each bases that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.inference.classifier import Predictions
from service.report.analysis.agreement import (
    Outcomes,
    count_outcomes,
    describe_difference,
    find_disagreements,
)
from service.report.analysis.calibration import ModelCalibration, assess_calibration
from service.report.analysis.paired_maps import ModelMaps
from service.report.analysis.timeline import compute_shared_limits
from service.report.drawing.album import Album, Drawing, Picture, draw_photo
from service.report.drawing.colours import SEQUENTIAL
from service.report.drawing.heatmap import describe_peak, quantize_heatmap
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section
from service.report.sections.training_images import select_rows

DISAGREEMENTS = 24  # largest number of images shown that the models disagree on
MAP_IMAGES = 4  # images whose heatmaps are shown
CLASSES = 20  # largest number of classes in the table
THUMBNAIL_SIDE = 160  # longest side of a photo in the list, in pixels

ReadPicture = Callable[[str, int], NDArray[np.uint8]]
ComputeMaps = Callable[[Sequence[int]], ModelMaps | None]


@dataclass(frozen=True)
class ComparedModel:
    """One of two models on the same images.

    Attributes:
        name: Name of the model on the page.
        predictions: Predictions for all images; classes and labels in the order that both models share.
        compute_maps: Computes the heatmaps of the images in some rows.
        provenance: Model and shard set the pictures are recorded with in the manifest.
    """

    name: str
    predictions: Predictions
    compute_maps: ComputeMaps
    provenance: Provenance


@dataclass(frozen=True)
class Confidence:
    """How confident a model is, for the template.

    Attributes:
        name: Name of the model.
        mean: Mean probability of the predicted class over all images.
        when_correct: The same over the correctly classified images; None if there are none.
        when_incorrect: The same over the others; None if there are none.
        calibration: How well confidence and accuracy agree; None for too few images.
    """

    name: str
    mean: float
    when_correct: float | None
    when_incorrect: float | None
    calibration: ModelCalibration | None

    @property
    def error(self) -> float | None:
        """The expected calibration error; None for too few images."""
        return None if self.calibration is None else self.calibration.error.value

    @property
    def interval(self) -> tuple[float, float] | None:
        """Confidence interval of the calibration error without its bias; None for too few images."""
        return None if self.calibration is None else self.calibration.error.interval


def build_section(
    album: Album,
    first: ComparedModel,
    second: ComparedModel,
    classes: Sequence[str],
    read_picture: ReadPicture,
    split: str,
    seed: int,
) -> Section:
    """Builds the comparison of two models on the same images.

    Args:
        album: Album the pictures are added to.
        first: Model whose name comes first, and from which differences are counted.
        second: The other model, with predictions for the same rows.
        classes: Class names; labels are indices into them.
        read_picture: Reads an image of the shard set in its own proportions, by its split and row.
        split: Split of the images.
        seed: Seed of the resampling for intervals.
    """
    labels = first.predictions.labels
    rows = first.predictions.rows
    is_correct = [model.predictions.classes == labels for model in (first, second)]
    outcomes = count_outcomes(*is_correct)
    indices, strengths = find_disagreements(first.predictions.probabilities, second.predictions.probabilities)
    shown = indices[:DISAGREEMENTS]
    pictures = album.add_all(
        _draw_thumbnail(read_picture(split, int(rows[index])), split, int(rows[index]), first.provenance)
        for index in shown
    )
    disagreements = [
        _describe_image(int(index), float(strength), picture, first, second, classes)
        for index, strength, picture in zip(shown, strengths, pictures, strict=False)
    ]
    confidences = [_measure_confidence(model, seed) for model in (first, second)]
    by_class = _compare_classes(labels, is_correct, classes)
    map_indices = _choose_images(shown, labels)
    maps = _build_maps(album, (first, second), map_indices, classes, split)
    values = {
        "first": first.name,
        "second": second.name,
        "split": split,
        "outcomes": outcomes,
        "verdict": describe_difference(outcomes, first.name, second.name),
        "disagreements": disagreements,
        "disagreement_count": len(indices),
        "confidences": confidences,
        "confidence_verdict": _describe_confidence(*confidences),
        "classes": by_class[:CLASSES],
        "class_count": len(by_class),
        "maps": maps,
    }
    figures = {
        "outcomes": asdict(outcomes),
        "p_value": outcomes.p_value,
        "disagreements": [
            {"row": int(rows[index]), "strength": float(strength)}
            for index, strength in zip(indices, strengths, strict=True)
        ],
        "confidence": {one.name: _list_figures(one) for one in confidences},
        "classes": {row["name"]: asdict(row["outcomes"]) for row in by_class},
        "maps": [
            {
                "row": view["row"],
                "limit": view["limit"],
                "highest": {one["model"]: one.get("highest") for one in view["models"]},
            }
            for view in maps
        ],
    }
    return Section("agreement", f"{first.name} and {second.name} on the same images", values, figures)


def _draw_thumbnail(pixels: NDArray[np.uint8], split: str, row: int, provenance: Provenance) -> Drawing:
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    if max(image.size) > THUMBNAIL_SIDE:
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    small = np.asarray(image)
    if small.ndim == 2:
        small = small[..., None]
    text = f"{split.capitalize()} image {row}"
    return draw_photo(small, "disagreement", text, provenance.describe_images(split, [row]))


def _describe_image(
    index: int,
    strength: float,
    picture: Picture,
    first: ComparedModel,
    second: ComparedModel,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Describes an image that the models disagree on, with both predictions."""
    label = int(first.predictions.labels[index])
    predictions = []
    for model in (first, second):
        predicted = int(model.predictions.classes[index])
        predictions.append(
            {
                "model": model.name,
                "predicted": classes[predicted],
                "probability": float(model.predictions.probabilities[index, predicted]),
                "is_correct": predicted == label,
            }
        )
    return {
        "row": int(first.predictions.rows[index]),
        "picture": picture,
        "truth": classes[label],
        "strength": strength,
        "predictions": predictions,
    }


def _measure_confidence(model: ComparedModel, seed: int) -> Confidence:
    predictions = model.predictions
    confidences = predictions.probabilities.max(axis=1)
    is_correct = predictions.classes == predictions.labels
    return Confidence(
        name=model.name,
        mean=float(confidences.mean()),
        when_correct=float(confidences[is_correct].mean()) if is_correct.any() else None,
        when_incorrect=float(confidences[~is_correct].mean()) if not is_correct.all() else None,
        calibration=assess_calibration(predictions.probabilities, predictions.labels, seed),
    )


def _describe_confidence(first: Confidence, second: Confidence) -> str:
    """Describes which model is more confident, and which one is better calibrated."""
    more, less = (first, second) if first.mean >= second.mean else (second, first)
    text = (
        f"{more.name} is more confident: the class it predicts has a probability of {more.mean:.1%} on "
        f"average, that of {less.name} {less.mean:.1%}."
    )
    if first.error is None or second.error is None or first.interval is None or second.interval is None:
        return text
    better, worse = (first, second) if first.error <= second.error else (second, first)
    text += (
        f" {better.name} is better calibrated: its probabilities differ from its accuracy by "
        f"{(better.error or 0) * 100:.1f} points (expected calibration error), those of {worse.name} by "
        f"{(worse.error or 0) * 100:.1f}."
    )
    is_overlapping = first.interval[0] <= second.interval[1] and second.interval[0] <= first.interval[1]
    if is_overlapping:
        text += " Their 95% confidence intervals overlap, so this could well be chance."
    return text


def _list_figures(confidence: Confidence) -> dict[str, Any]:
    return {
        "mean": confidence.mean,
        "when_correct": confidence.when_correct,
        "when_incorrect": confidence.when_incorrect,
        "calibration_error": confidence.error,
        "interval": confidence.interval,
    }


def _compare_classes(
    labels: NDArray[np.int32], is_correct: Sequence[NDArray[np.bool_]], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Counts the outcomes of every class with images, the largest difference first."""
    first, second = is_correct
    rows: list[dict[str, Any]] = []
    for label, name in enumerate(classes):
        is_class = labels == label
        if is_class.any():
            rows.append({"name": name, "outcomes": count_outcomes(first[is_class], second[is_class])})
    rows.sort(key=lambda row: -abs(_read_difference(row["outcomes"])))
    return rows


def _read_difference(outcomes: Outcomes) -> float:
    return outcomes.difference


def _choose_images(disagreements: NDArray[np.int64], labels: NDArray[np.int32]) -> list[int]:
    """Chooses the images with heatmaps: the strongest disagreements, then images of different classes."""
    others = [int(index) for index in select_rows(labels, 2 * MAP_IMAGES)]
    candidates = [*(int(index) for index in disagreements[:MAP_IMAGES]), *others]
    return list(dict.fromkeys(candidates))[:MAP_IMAGES]


def _build_maps(
    album: Album,
    models: Sequence[ComparedModel],
    indices: Sequence[int],
    classes: Sequence[str],
    split: str,
) -> list[dict[str, Any]]:
    """Builds the heatmaps of both models side by side, each image on one scale.

    Returns:
        One entry per image; empty if no model has feature maps.
    """
    rows = [int(models[0].predictions.rows[index]) for index in indices]
    computed = [model.compute_maps(rows) for model in models]
    present = [maps.maps for maps in computed if maps is not None]
    if not present or not rows:
        return []
    limits = compute_shared_limits(present)
    views = []
    for n, (index, row) in enumerate(zip(indices, rows, strict=True)):
        truth = classes[int(models[0].predictions.labels[index])]
        shown = []
        for model, maps in zip(models, computed, strict=True):
            probability = float(model.predictions.probabilities[index, model.predictions.labels[index]])
            entry: dict[str, Any] = {"model": model.name, "probability": probability, "photo": None}
            if maps is not None:
                origin = model.provenance.describe_images(split, [row], layer=maps.layer)
                photo = draw_photo(maps.images[n], "input", f"{split.capitalize()} image {row}", origin)
                heat = _draw_map(maps, n, float(limits[n]), f"{model.name}, {truth}, image {row}", origin)
                entry["photo"], entry["map"] = album.add_all([photo, heat])
                entry["layer"] = maps.layer
                entry["highest"] = float(maps.maps[n].max())
            shown.append(entry)
        views.append({"row": row, "truth": truth, "limit": float(limits[n]), "models": shown})
    return views


def _draw_map(maps: ModelMaps, n: int, limit: float, text: str, origin: dict[str, Any]) -> Drawing:
    size = maps.images.shape[1:3]
    alt = f"Grad-CAM of {text}: {describe_peak(maps.maps[n])}"
    return Drawing(
        quantize_heatmap(maps.maps[n], size, limit), "map", alt, origin | {"limit": limit}, "map", SEQUENTIAL
    )
