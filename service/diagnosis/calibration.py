"""Calibrates a model on images it was not trained on, and estimates how many labels are wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.scores import compute_skill

MIN_IMAGES = 100  # fewer do not determine a temperature
MAX_IMAGES = 5_000  # more do not change it
TEMPERATURES = np.exp(np.linspace(-1.5, 2.5, 41))  # 0.22 to 12
TEMPERATURE_RANGE = (0.05, 20.0)  # of `fit_temperature`
TEMPERATURE_STEPS = 20  # halvings of the interval of its logarithm: to 6e-6
NOISE_RATES = np.concatenate([[0.0], np.geomspace(0.002, 0.4, 40)])
TINY = 1e-12


@dataclass(frozen=True)
class Calibration:
    """How the probabilities of a model have to be read.

    Attributes:
        temperature: Divisor of the logits: above 1 for an overconfident model.
        noise_rate: Estimated share of wrong labels among the images it was fitted to.
        skill: Skill of the model on these images (see `service.scores.compute_skill`).
    """

    temperature: float
    noise_rate: float
    skill: float

    def compute_label_probabilities(
        self, probabilities: NDArray[np.float32], labels: NDArray[np.int32]
    ) -> NDArray[np.float64]:
        """Computes the calibrated probabilities of some labels.

        Args:
            probabilities: float32 `[N, K]`, as predicted.
            labels: int32 `[N]`, class indices.

        Returns:
            float64 `[N]`.
        """
        return _apply_temperature(compute_logits(probabilities), labels, self.temperature)


def calibrate(probabilities: NDArray[np.float32], labels: NDArray[np.int32]) -> Calibration | None:
    """Fits a temperature and a share of wrong labels to predictions for images the model was not trained on.

    A label is modelled as the true class with probability 1 - e, and as any other class with probability
    e / (K - 1). The true class follows the predicted probabilities after their logits were divided by a
    temperature (Guo et al., 2017). Both numbers are those of the highest likelihood. They can be told apart:
    a temperature makes all mistakes less surprising, wrong labels only the most surprising ones.

    Args:
        probabilities: float32 `[N, K]`, predicted for images the model was not trained on.
        labels: int32 `[N]`, the labels of these images, some of which may be wrong.

    Returns:
        The calibration; None for fewer than `MIN_IMAGES` images.
    """
    if len(labels) < MIN_IMAGES:
        return None
    labels = labels[:MAX_IMAGES]
    logits = compute_logits(probabilities[:MAX_IMAGES])
    best = (-np.inf, 1.0, 0.0)
    for temperature in TEMPERATURES:
        label_probabilities = _apply_temperature(logits, labels, temperature)
        likelihoods = _compute_likelihoods(label_probabilities, probabilities.shape[1])
        index = int(likelihoods.argmax())
        best = max(best, (float(likelihoods[index]), float(temperature), float(NOISE_RATES[index])))
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    return Calibration(temperature=best[1], noise_rate=best[2], skill=compute_skill(accuracy, labels))


def estimate_noise_rate(label_probabilities: NDArray[np.float64], classes: int) -> float:
    """Estimates the share of wrong labels (see `calibrate`).

    Args:
        label_probabilities: float64 `[N]`, calibrated probabilities of the labels.
        classes: Number of classes K.
    """
    if not len(label_probabilities):
        return 0.0
    return float(NOISE_RATES[_compute_likelihoods(label_probabilities, classes).argmax()])


def compute_error_probabilities(
    label_probabilities: NDArray[np.float64], noise_rate: float, classes: int
) -> NDArray[np.float64]:
    """Computes the probability that each label is wrong (Bayes' rule).

    Args:
        label_probabilities: float64 `[N]`, calibrated probabilities of the labels.
        noise_rate: Share of wrong labels.
        classes: Number of classes K.

    Returns:
        float64 `[N]`.
    """
    wrong = noise_rate * (1 - label_probabilities) / (classes - 1)
    right = (1 - noise_rate) * label_probabilities
    return wrong / np.maximum(wrong + right, TINY)


def fit_temperature(probabilities: NDArray[np.float32], labels: NDArray[np.int32]) -> float:
    """Fits the divisor of the logits with the highest likelihood of the labels (Guo et al., 2017).

    The negative log likelihood is convex in the inverse of the temperature, so that bisection of its slope
    finds the minimum.

    Args:
        probabilities: float32 `[N, K]`, predicted.
        labels: int32 `[N]`, class indices, all of them trusted.

    Returns:
        The temperature, above 1 for an overconfident model; a bound of `TEMPERATURE_RANGE` if the likelihood
        increases beyond it.
    """
    logits = compute_logits(probabilities)
    logits -= logits.max(axis=1, keepdims=True)
    at_labels = logits[np.arange(len(labels)), labels].mean()
    low, high = (1 / bound for bound in reversed(TEMPERATURE_RANGE))
    for _ in range(TEMPERATURE_STEPS):
        factor = float(np.sqrt(low * high))
        exponentials = np.exp(logits * factor)  # [N, K]
        expected = (exponentials * logits).sum(axis=1) / exponentials.sum(axis=1)
        if expected.mean() < at_labels:
            low = factor
        else:
            high = factor
    return float(1 / np.sqrt(low * high))


def compute_logits(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Computes logits of probabilities, float64 `[N, K]`; their softmax are the probabilities."""
    logits: NDArray[np.float64] = np.log(np.maximum(probabilities.astype(np.float64), TINY))
    return logits


def _apply_temperature(
    logits: NDArray[np.float64], labels: NDArray[np.int32], temperature: float
) -> NDArray[np.float64]:
    """Returns the softmax of `logits / temperature` at the labels, float64 `[N]`."""
    scaled = logits / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))  # [N, K]
    at_labels: NDArray[np.float64] = exponentials[np.arange(len(labels)), labels]
    probabilities: NDArray[np.float64] = at_labels / exponentials.sum(axis=1)
    return probabilities


def _compute_likelihoods(label_probabilities: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
    """Returns the log likelihood of the labels for every one of `NOISE_RATES`."""
    right = label_probabilities[:, None]  # [N, 1]
    wrong = (1 - right) / (classes - 1)
    mixture = (1 - NOISE_RATES) * right + NOISE_RATES * wrong  # [N, rates]
    likelihoods: NDArray[np.float64] = np.log(np.maximum(mixture, TINY)).sum(axis=0)
    return likelihoods
