"""Calibration: whether the model is as often correct as its probabilities say, and how to correct them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from service.diagnosis.calibration import TEMPERATURE_RANGE
from service.inference.classifier import Predictions
from service.report.analysis.calibration import BINS, FOLDS, MIN_IMAGES, ModelCalibration, Reliability
from service.report.drawing.formatting import number, percent
from service.report.sections.section import Section
from service.scores import wilson_interval

CONFIDENT = 0.9  # the predictions that the summary is about have at least this confidence
BOUND_TOLERANCE = 1e-4  # of a temperature, relative
FEWEST_CONFIDENT = 20  # of fewer images, the summary is about all predictions


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram.

    Attributes:
        low: Lower end of its confidences, not included.
        high: Upper end of its confidences, included.
        images: Number of predictions.
        confidence: Their mean confidence.
        accuracy: Share of them that is correct.
        interval: 95 % confidence interval of that share.
    """

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float
    interval: tuple[float, float]


def build_section(predictions: Predictions, calibration: ModelCalibration | None) -> Section | None:
    """Builds reliability diagrams before and after a temperature, and histograms of the confidences.

    Args:
        predictions: Predictions for the evaluated split.
        calibration: Their calibration; None for fewer than `MIN_IMAGES` images.

    Returns:
        The section; None without a calibration.
    """
    if calibration is None:
        return None
    before = list_bins(calibration.reliability)
    after = list_bins(calibration.reliability_after)
    values = {
        "images": len(predictions.labels),
        "classes": predictions.probabilities.shape[1],
        "summary": summarize_confidence(predictions),
        "verdict": describe_error(calibration),
        "calibration": calibration,
        "temperature": format_temperature(calibration.temperature),
        "bins": BINS,
        "folds": FOLDS,
        "fewest": MIN_IMAGES,
        "diagrams": [
            ("As predicted", before, calibration.error),
            ("After correction by a temperature", after, calibration.error_after),
        ],
        "start": min(before[0].low, after[0].low),
        "histograms": [
            ("correct", _list_bars(calibration.correct)),
            ("incorrect", _list_bars(calibration.incorrect)),
        ],
    }
    figures: dict[str, Any] = {
        "images": len(predictions.labels),
        "error": asdict(calibration.error),
        "temperature": calibration.temperature,
        "error_after": asdict(calibration.error_after),
        "mean_confidence_minus_accuracy": calibration.reliability.mean_gap,
        "bins": [asdict(item) for item in before],
        "bins_after": [asdict(item) for item in after],
        "correct": calibration.correct.tolist(),
        "incorrect": calibration.incorrect.tolist(),
        "summary": values["summary"],
        "verdict": values["verdict"],
    }
    return Section("calibration", "Calibration", values, figures)


def format_temperature(temperature: float) -> str:
    """Formats a fitted temperature, which is a bound of what was tried if the best one lies beyond."""
    low, high = TEMPERATURE_RANGE
    text = number(temperature)
    if math.isclose(temperature, low, rel_tol=BOUND_TOLERANCE):
        return f"{text} or less"
    return f"{text} or more" if math.isclose(temperature, high, rel_tol=BOUND_TOLERANCE) else text


def list_bins(reliability: Reliability) -> list[Bin]:
    """Lists the bins that hold predictions.

    Args:
        reliability: Predictions by confidence, at least one.
    """
    hits = np.rint(np.nan_to_num(reliability.accuracies) * reliability.counts).astype(np.int64)
    lows, highs = wilson_interval(hits, reliability.counts)
    return [
        Bin(
            low=index / BINS,
            high=(index + 1) / BINS,
            images=int(reliability.counts[index]),
            confidence=float(reliability.confidences[index]),
            accuracy=float(reliability.accuracies[index]),
            interval=(float(lows[index]), float(highs[index])),
        )
        for index in np.flatnonzero(reliability.counts)
    ]


def summarize_confidence(predictions: Predictions) -> str:
    """Compares confidence and accuracy of the most confident predictions, in a sentence.

    Args:
        predictions: Predictions for the evaluated split, at least one.
    """
    confidences = predictions.probabilities.max(axis=1).astype(np.float64)
    is_correct = predictions.classes == predictions.labels
    is_confident = confidences >= CONFIDENT
    count = int(is_confident.sum())
    if count < FEWEST_CONFIDENT:
        return (
            f"The model's predictions have a confidence of {percent(float(confidences.mean()))} on average, "
            f"and {percent(float(is_correct.mean()))} of them are correct."
        )
    accuracy = float(is_correct[is_confident].mean())
    return (
        f"Of the {count:,} predictions made with a confidence of {percent(CONFIDENT, 0)} or more "
        f"({percent(float(confidences[is_confident].mean()))} on average), {percent(accuracy)} are correct."
    )


def describe_error(calibration: ModelCalibration) -> str:
    """Describes in a sentence or two whether the probabilities can be relied on, and what corrects them.

    Args:
        calibration: Calibration of the model.
    """
    error = calibration.error
    after = calibration.error_after
    if not error.is_significant:
        return (
            "The confidences agree with the accuracy as well as so many images can tell: even a perfectly "
            f"calibrated model would show an error of up to {percent(error.floor)}."
        )
    direction = "too low (the model is underconfident)"
    if calibration.reliability.mean_gap > 0:
        direction = "too high (the model is overconfident)"
    correction = f"A temperature of {calibration.temperature:.2f} "
    if after.value < error.value:
        remainder = ", no more than chance alone would show" if not after.is_significant else ""
        correction += f"reduces the error to {percent(after.value)}{remainder}."
    else:
        correction += "does not reduce the error: it is not the same for all images."
    return f"On average, confidences are {direction}. {correction}"


def _list_bars(counts: np.ndarray) -> list[tuple[float, float, int]]:
    """Returns lower end, share of the highest bar, and number of images of every bin."""
    highest = max(int(counts.max()), 1)
    return [(index / BINS, int(count) / highest, int(count)) for index, count in enumerate(counts)]
