"""Predictions: the surest mistakes and the surest right answers, and the score over the whole split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.inference.classifier import Predictions
from service.report.drawing.album import Album, Picture
from service.report.subject import Section, Subject

TOP = 3  # classes whose probabilities are shown


@dataclass(frozen=True)
class Answer:
    """One image with what the model said of it; `top` holds its most probable classes."""

    picture: Picture
    predicted: str
    probability: float
    truth: str
    right: bool
    top: tuple[tuple[str, float], ...]


def choose(predictions: Predictions, count: int) -> np.ndarray:
    """Picks which predictions to show: wrong ones first, the surest first; then right ones, of each class in turn the surest.

    Half of the places are for mistakes; places that one kind cannot fill go to the other.

    Args:
        predictions: Of N images.
        count: How many to pick, at most.

    Returns:
        int64 `[<= count]`, indices into the predictions.
    """
    sureness = predictions.probabilities.max(axis=1)
    order = np.argsort(-sureness, kind="stable")
    is_right = (predictions.classes == predictions.labels)[order]
    wrong, right = order[~is_right], _in_turn(order[is_right], predictions.labels)
    mistakes = min(len(wrong), max(count - len(right), -(-count // 2)))
    return np.concatenate([wrong[:mistakes], right[: count - mistakes]])


def _in_turn(indices: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Reorders indices so that the classes take turns; within a class the order stays."""
    of = labels[indices]
    turns = np.zeros(len(indices), np.int64)
    for label in np.unique(of):
        turns[of == label] = np.arange((of == label).sum())
    return indices[np.argsort(turns, kind="stable")]


def build_section(subject: Subject, album: Album) -> Section:
    """A grid of judged images with prediction, probability and truth."""
    predictions, images = subject.predictions, subject.evaluation
    chosen = choose(predictions, subject.options.predictions)
    rows = predictions.rows[chosen]
    answers = []
    for index, row, pixels in zip(chosen, rows, images.read(rows), strict=True):
        predicted, truth = int(predictions.classes[index]), int(predictions.labels[index])
        probability = float(predictions.probabilities[index, predicted])
        said, is_ = subject.classes[predicted], subject.classes[truth]
        words = f"{images.split.capitalize()} image {row}: predicted {said} with {probability:.1%}, is {is_}"
        origin = subject.origin(images, [row], checkpoint=subject.model_digest, scale=subject.scale)
        picture = album.add_photo(pixels, "prediction", words, **origin)
        surest = np.argsort(-predictions.probabilities[index], kind="stable")[:TOP]
        top = tuple((subject.classes[n], float(predictions.probabilities[index, n])) for n in surest)
        answers.append(Answer(picture, said, probability, is_, predicted == truth, top))
    wrong = int((predictions.classes != predictions.labels).sum())
    total = len(predictions.labels)
    figures = {
        "split": images.split,
        "images": total,
        "wrong": wrong,
        "accuracy": predictions.accuracy,
        "loss": predictions.loss,
    }
    shown = [
        {"row": int(r), "predicted": a.predicted, "probability": a.probability, "true": a.truth}
        for r, a in zip(rows, answers, strict=True)
    ]
    return Section("predictions", "Predictions", {"answers": answers, **figures}, {**figures, "shown": shown})
