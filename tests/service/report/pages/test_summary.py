"""The verdict agrees with its figures."""

from __future__ import annotations

import pytest

from service.report.pages.summary import Summary, format_verdict, list_warnings


def summary(
    best: float | None = 0.735,
    training: float | None = 0.979,
    split: str = "validation",
    baseline: float = 0.5,
) -> Summary:
    gap = None if best is None or training is None else training - best
    epoch = None if best is None else 27
    return Summary(split, 1000, 0.735, 0.6, baseline, 30, epoch, best, training, gap, 900.0)


@pytest.mark.parametrize(
    ("training", "text"),
    [
        (0.979, "97.9%, 24.4 points higher: the model overfits, it has memorized many"),
        (0.785, "78.5%, 5.0 points higher: the model overfits slightly"),
        (0.745, "74.5%, within 1.0 points: the model generalizes well to new images"),
        (0.635, "63.5%, 10.0 points lower: it is averaged over the epoch"),
    ],
)
def test_the_verdict_describes_the_gap(training, text):
    verdict = format_verdict(summary(training=training))
    assert verdict.startswith(
        "Validation accuracy peaks at 73.5% in epoch 27 of 30 (majority-class baseline: 50.0%)."
    )
    assert text in verdict


def test_a_model_no_better_than_the_baseline_is_called_so():
    verdict = format_verdict(summary(best=0.51, training=0.99))
    assert "no better than the majority-class baseline: 50.0%" in verdict
    assert "overfits" not in verdict


def test_without_validation_nothing_is_claimed_about_new_images():
    verdict = format_verdict(summary(best=None, split="train"))
    assert "1,000 training images" in verdict
    assert "nothing is known about new images" in verdict


def test_a_model_without_a_run():
    assert (
        format_verdict(summary(best=None))
        == "Accuracy is 73.5% on 1,000 validation images (majority-class baseline: 50.0%)."
    )


def test_warnings():
    assert list_warnings(summary(), "finished") == []
    assert list_warnings(summary(best=0.739), "") == []
    assert (
        "73.5% on this shard set, but training recorded 80.0%"
        in list_warnings(summary(best=0.8), "finished")[0]
    )
    assert "not finished (state: failed)" in list_warnings(summary(), "failed")[0]
