"""Findings for curves whose diagnosis is known: constructed ones, and those of the published runs."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from service.diagnosis.curves import Curve, fit_trend
from service.diagnosis.findings import History, diagnose
from service.diagnosis.histories import read_histories
from service.scores import standard_error

Epochs = list[dict[str, float]]


def epochs(loss, accuracy, val_loss=None, val_accuracy=None) -> Epochs:
    columns = {"loss": loss, "accuracy": accuracy, "val_loss": val_loss, "val_accuracy": val_accuracy}
    columns = {
        name: np.broadcast_to(np.asarray(values, float), np.shape(loss))
        for name, values in columns.items()
        if values is not None
    }
    return [{name: float(values[n]) for name, values in columns.items()} for n in range(len(loss))]


def overfitting(count: int = 40, turn: int = 12, noise: float = 0.0, seed: int = 0) -> Epochs:
    """Validation loss is lowest in epoch `turn`; in the end 98 % on training images and 72 % on others."""
    n = np.arange(1, count + 1)
    draw = np.random.default_rng(seed)
    away = np.where(n < turn, (turn - n) / turn * 0.15, (n - turn) / count * 0.6)
    training = 0.5 + 0.48 * np.minimum(n / count * 1.2, 1)
    validation = 0.5 + 0.22 * np.minimum(n / turn, 1)
    wobble = noise * draw.standard_normal((2, count))
    return epochs(0.7 * (1 - n / count) + 0.03, training, 0.55 + away + wobble[0], validation + wobble[1])


def healthy(count: int, fall: float, noise: float = 0.0, seed: int = 0) -> Epochs:
    """Both losses decrease by `fall` over the whole run; the accuracy ends near 80 %."""
    n = np.arange(count)
    draw = np.random.default_rng(seed)
    wobble = noise * draw.standard_normal((2, count))
    loss = 0.6 - fall * n / max(count - 1, 1)
    accuracy = 0.7 + 0.1 * n / max(count - 1, 1)
    return epochs(loss, accuracy, loss + 0.01 + wobble[0], accuracy - 0.005 + wobble[1])


def kinds(
    of: Epochs, images: int | None = 1000, majority_share: float | None = 0.5, failure: str = ""
) -> list[str]:
    return [finding.kind for finding in diagnose(History(of, images, majority_share, failure))]


@pytest.mark.parametrize("noise", [0.0, 0.015])
def test_overfitting_has_its_first_epoch_and_its_gap(noise: float) -> None:
    (finding,) = diagnose(History(overfitting(noise=noise), 1000, 0.5))
    assert finding.kind == "overfitting"
    assert abs(finding.figures["epoch"] - 12) <= 3  # half of the smoothing window
    assert finding.figures["gap"] == pytest.approx(0.26, abs=0.01 + noise)
    assert (
        finding.figures["training_accuracy"] - finding.figures["validation_accuracy"]
        == finding.figures["gap"]
    )
    assert finding.figures["error"] >= standard_error(0.72, 1000)
    assert f"From epoch {finding.figures['epoch']} on" in finding.message
    assert f"a gap of {finding.figures['gap'] * 100:.1f} points" in finding.message
    assert "augmentation" in finding.advice


def test_a_wide_gap_without_a_rising_loss() -> None:
    n = np.arange(1, 31)
    training = np.where(n <= 10, 0.7, 0.95)
    (finding,) = diagnose(History(epochs(1 / n, training, np.full(30, 0.6), np.full(30, 0.7)), 1000))
    assert finding.kind == "overfitting"
    assert abs(finding.figures["epoch"] - 11) <= 1
    assert "lowest_loss" not in finding.figures


def test_better_validation_than_training_metrics_are_not_overfitting() -> None:
    """The same gap with the other sign: training metrics include dropout and average over the epoch."""
    n = np.arange(1, 31)
    assert kinds(epochs(0.5 + 0 * n, np.full(30, 0.7), np.full(30, 0.4), np.full(30, 0.95))) == [
        "underfitting"
    ]


@pytest.mark.parametrize("seed", range(10))
def test_noise_alone_is_neither_overfitting_nor_learning(seed: int) -> None:
    assert kinds(healthy(60, fall=0.0, noise=0.02, seed=seed)) == ["underfitting"]


@pytest.mark.parametrize("seed", range(10))
def test_a_gap_within_the_uncertainty_of_few_images_is_not_reported(seed: int) -> None:
    """Four points of 100 images are one standard error; of 10,000 they are ten."""
    n = np.arange(40)
    draw = np.random.default_rng(seed)
    of = epochs(0.5 - 0.01 * n, np.full(40, 0.84), 0.45 + 0.01 * n, 0.8 + 0.002 * draw.standard_normal(40))
    assert "overfitting" not in kinds(of, images=100)
    assert kinds(of, images=10_000) == ["overfitting"]


@pytest.mark.parametrize("seed", range(10))
def test_a_gap_that_noise_alone_widens_is_not_overfitting(seed: int) -> None:
    wobble = 0.03 * np.random.default_rng(seed).standard_normal(40)
    assert kinds(epochs(np.full(40, 0.3), 0.9, 0.4 + wobble, 0.84), images=10_000) == ["plateau"]


def test_one_bad_epoch_at_the_end_does_not_count() -> None:
    of = healthy(30, fall=0.0)
    of[-1] |= {"val_loss": 2.0, "val_accuracy": 0.5}
    assert kinds(of) == ["underfitting"]


def test_a_finding_states_the_epochs_that_its_accuracies_are_from() -> None:
    of = healthy(30, fall=0.0, noise=0.01)
    for number, epoch in enumerate(of):
        epoch["accuracy"] += 0.003 * (number % 5)
        epoch["val_accuracy"] -= 0.004 * (number % 7)
    (finding,) = diagnose(History(of, 1000, 0.5))
    found = re.search(r"\(medians of the last (\d+) epochs\)", finding.message)
    assert found
    last = of[-int(found[1]) :]
    training = np.median([epoch["accuracy"] for epoch in last])
    validation = np.median([epoch["val_accuracy"] for epoch in last])
    assert (
        f"the training accuracy is {training:.1%} and the validation accuracy {validation:.1%} ("
        in finding.message
    )


def test_a_run_that_still_learns_has_its_rate() -> None:
    (finding,) = diagnose(History(healthy(30, fall=0.3, noise=0.005), 1000, 0.5))
    assert finding.kind == "learning"
    assert finding.figures["epochs"] == 10
    assert finding.figures["change"] == pytest.approx(-0.3 * 9 / 29, abs=0.02)
    assert "epochs=60" in finding.advice


def test_learning_that_the_noise_of_validation_hides() -> None:
    of = healthy(60, fall=0.1, noise=0.0)
    draw = np.random.default_rng(1)
    for epoch in of:
        epoch["val_loss"] += 0.1 * draw.standard_normal()
    (finding,) = diagnose(History(of, 1000, 0.5))
    assert finding.kind == "learning"
    assert "no clear gap" in finding.message
    assert finding.figures["training_change"] < 0


def test_a_loss_that_rises_on_too_few_images_is_neither_learning_nor_converged() -> None:
    """The gap is wide, but six images prove none."""
    n = np.arange(30)
    assert kinds(epochs(0.5 - 0.015 * n, 0.99, 0.4 + 0.01 * n, 0.7), images=6, majority_share=None) == [
        "plateau"
    ]


@pytest.mark.parametrize(("level", "kind"), [(0.6, "underfitting"), (0.95, "plateau"), (0.99, "converged")])
def test_constant_curves_have_a_finding_by_their_level(level: float, kind: str) -> None:
    assert kinds(epochs(np.full(20, 0.4), level, 0.4, level)) == [kind]


def test_a_gap_that_does_not_grow_is_a_plateau() -> None:
    assert kinds(epochs(np.full(20, 0.3), 0.9, 0.4, 0.83)) == ["plateau"]
    # The training accuracy is low as well
    assert kinds(epochs(np.full(20, 0.3), 0.85, 0.4, 0.78)) == ["plateau"]
    # Only the training loss still decreases
    assert kinds(epochs(0.5 - 0.01 * np.arange(20), 0.9, 0.4, 0.83)) == ["plateau"]


def test_accuracy_of_the_majority_class_baseline_is_reported_as_chance() -> None:
    findings = diagnose(History(epochs(np.full(20, 0.69), 0.51, 0.69, 0.51), 1000, 0.5))
    assert [finding.kind for finding in findings] == ["chance"]
    assert "51.0%" in findings[0].message
    assert kinds(epochs(np.full(20, 0.69), 0.56, 0.69, 0.56), images=100) == ["chance"]
    assert kinds(epochs(np.full(20, 0.65), 0.56, 0.65, 0.56), images=1000) == ["underfitting"]


@pytest.mark.parametrize("key", ["loss", "val_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_has_diverged(key: str, value: float) -> None:
    of = healthy(3, fall=0.1)
    of[1][key] = value
    (finding,) = diagnose(History(of))
    assert finding.kind == "diverged"
    assert finding.figures["epoch"] == 2


def test_a_training_loss_that_rises_again_has_diverged() -> None:
    n = np.arange(20)
    (finding,) = diagnose(History(epochs(np.where(n < 10, 1 - 0.08 * n, 0.9), 0.5, 0.9, 0.5)))
    assert finding.kind == "diverged"
    assert finding.figures["epoch"] in (9, 10)
    assert kinds(epochs(1 + 0.1 * n, 0.5, 0.9, 0.5)) == ["diverged"]
    assert kinds(epochs(1 - 0.04 * n, 0.5, 0.9, 0.6), majority_share=None) != ["diverged"]


def test_a_run_that_failed_has_diverged() -> None:
    assert kinds(healthy(6, 0.1), failure="Expected a finite gradient. Received: epoch=7 ...") == ["diverged"]
    assert kinds(healthy(6, 0.1), failure="Expected workers that live to the end.") != ["diverged"]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("validation", [True, False])
def test_short_runs_have_no_findings(count: int, validation: bool) -> None:
    of = overfitting(40)[36:][:count]
    if not validation:
        of = [{key: value for key, value in epoch.items() if not key.startswith("val")} for epoch in of]
    (finding,) = diagnose(History(of, 1000, 0.5))
    assert finding.kind == "short"
    assert finding.figures["epochs"] == count
    assert ("gap" in finding.figures) == (validation and count > 0)


def test_without_validation() -> None:
    training = [{key: epoch[key] for key in ("loss", "accuracy")} for epoch in overfitting()]
    (finding,) = diagnose(History(training))
    assert finding.kind == "learning"
    assert "training loss" in finding.message
    assert [f.kind for f in diagnose(History(epochs(np.full(20, 0.4), 0.6)))] == ["underfitting"]


def test_without_a_training_loss() -> None:
    of = [{key: value for key, value in epoch.items() if key != "loss"} for epoch in overfitting()]
    (finding,) = diagnose(History(of, 1000, 0.5))
    assert finding.kind == "overfitting"
    assert "training loss" not in finding.message


def test_epochs_without_evaluation_are_skipped() -> None:
    of = overfitting(80, turn=24)
    for number, epoch in enumerate(of, 1):
        if number % 4:
            del epoch["val_loss"], epoch["val_accuracy"]
    (finding,) = diagnose(History(of, 1000, 0.5))
    assert finding.kind == "overfitting"
    assert abs(finding.figures["epoch"] - 24) <= 4


def test_smoothing_trend_and_noise_of_a_curve() -> None:
    of = [{"loss": value} for value in (5.0, 4.0, 9.0, 2.0, 1.0, 0.0)] + [{}]
    curve = Curve.from_epochs(of, "loss")
    assert curve.window == 3
    assert curve.smooth.tolist() == [4.5, 5.0, 4.0, 2.0, 1.0, 0.5]
    line = fit_trend(Curve.from_epochs([{"loss": 10.0 - 2 * n} for n in range(9)], "loss"))
    assert (line.epochs, line.change, line.error) == (5, pytest.approx(-8.0), pytest.approx(0.0))
    draw = np.random.default_rng(0)
    noisy = Curve(np.arange(1, 2001), 3.0 * np.arange(2000) + draw.normal(0, 0.5, 2000))
    assert noisy.noise == pytest.approx(0.5, rel=0.06)


def test_the_published_histories(shared: Path) -> None:
    found = {
        name: diagnose(History(of, 1000, 0.5))
        for name, of in read_histories(shared / "seed_results" / "histories.json").items()
    }
    (first,) = found["cats_and_dogs_small_1"]
    (second,) = found["cats_and_dogs_small_2"]
    assert first.kind == "overfitting"
    assert 5 <= first.figures["epoch"] <= 15
    assert 0.24 < first.figures["gap"] < 0.29
    assert second.kind == "learning"


@pytest.mark.parametrize("cut", range(50, 100, 5))
def test_the_second_published_run_overfits_at_no_point(shared: Path, cut: int) -> None:
    of = read_histories(shared / "seed_results" / "histories.json")
    assert "overfitting" not in kinds(list(of["cats_and_dogs_small_2"][:cut]))
    assert "overfitting" in kinds(list(of["cats_and_dogs_small_1"][: cut // 5 + 8]))
