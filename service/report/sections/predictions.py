"""Predictions: the most confident mistakes and correct predictions, with their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.inference.classifier import Predictions
from service.report.analysis.gallery import alternate_classes
from service.report.analysis.images import Images
from service.report.drawing.album import Album, Picture
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section

TOP = 3  # number of classes whose probabilities are shown


@dataclass(frozen=True)
class PredictionView:
    """One image with its prediction, for the template.

    Attributes:
        row: Row of the image in its split.
        picture: Picture of the image.
        predicted: Name of the predicted class.
        probability: Probability of the predicted class, in [0, 1].
        truth: Name of the true class.
        is_correct: Whether the predicted class is the true one.
        top: Names and probabilities of the most probable classes.
    """

    row: int
    picture: Picture
    predicted: str
    probability: float
    truth: str
    is_correct: bool
    top: tuple[tuple[str, float], ...]


def build_section(
    album: Album,
    provenance: Provenance,
    predictions: Predictions,
    images: Images,
    classes: Sequence[str],
    count: int,
) -> Section:
    """Builds a grid of images with predicted class, probabilities and true class.

    Args:
        album: Album the pictures are added to.
        provenance: Model and shard set the pictures are recorded with in the manifest.
        predictions: Predictions for the evaluated split.
        images: Split the predictions were computed on.
        classes: Class names; labels are indices into them.
        count: Number of images to show, at most.
    """
    indices = select_predictions(predictions, count)
    rows = predictions.rows[indices]
    examples = []
    for index, row, pixels in zip(indices, rows, images.read(rows), strict=True):
        probabilities = predictions.probabilities[index]
        predicted = int(predictions.classes[index])
        truth = int(predictions.labels[index])
        probability = float(probabilities[predicted])
        picture = album.add_photo(
            pixels,
            "prediction",
            f"{images.split.capitalize()} image {row}: predicted {classes[predicted]} with "
            f"{probability:.1%}, true class {classes[truth]}",
            **provenance.describe_outputs(images.split, [row]),
        )
        most_probable = np.argsort(-probabilities, kind="stable")[:TOP]
        examples.append(
            PredictionView(
                int(row),
                picture,
                classes[predicted],
                probability,
                classes[truth],
                predicted == truth,
                tuple((classes[label], float(probabilities[label])) for label in most_probable),
            )
        )
    figures = {
        "split": images.split,
        "images": len(predictions.labels),
        "wrong": int((predictions.classes != predictions.labels).sum()),
        "accuracy": predictions.accuracy,
        "loss": predictions.loss,
    }
    views = [
        {
            "row": int(row),
            "predicted": example.predicted,
            "probability": example.probability,
            "true": example.truth,
        }
        for row, example in zip(rows, examples, strict=True)
    ]
    return Section(
        "predictions", "Predictions", {"examples": examples, **figures}, {**figures, "shown": views}
    )


def select_predictions(predictions: Predictions, count: int) -> NDArray[np.int64]:
    """Selects the predictions to show: mistakes by confidence, then correct ones, of each class in turn.

    Half of them are mistakes, as far as there are enough predictions of either kind.

    Args:
        predictions: Predictions for N images.
        count: Number of predictions to select, at most.

    Returns:
        int64 `[<= count]`, indices into the predictions.
    """
    confidence = predictions.probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    is_correct = (predictions.classes == predictions.labels)[order]
    mistakes = order[~is_correct]
    correct = alternate_classes(order[is_correct], predictions.labels)
    mistake_count = min(len(mistakes), max(count - len(correct), -(-count // 2)))
    return np.concatenate([mistakes[:mistake_count], correct[: count - mistake_count]])
