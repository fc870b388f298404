"""The verdict says what the figures say."""

from __future__ import annotations

import pytest

from service.report.pages.summary import Summary, doubts, verdict


def summary(
    best: float | None = 0.735,
    training: float | None = 0.979,
    split: str = "validation",
    commonest: float = 0.5,
) -> Summary:
    gap = None if best is None or training is None else training - best
    epoch = None if best is None else 27
    return Summary(split, 1000, 0.735, 0.6, commonest, 30, epoch, best, training, gap, 900.0)


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (0.979, "97.9%, 24.4 points more: it has learned many of them by heart"),
        (0.785, "78.5%, 5.0 points more: it knows these a little better"),
        (0.745, "74.5%, 1.0 points away: it does as well on new images"),
        (0.635, "63.5%, 10.0 points less: an average over the epoch"),
    ],
)
def test_the_gap_in_words(training, words):
    said = verdict(summary(training=training))
    assert said.startswith(
        "Right on 73.5% of the validation images at its best, in epoch 27 of 30, where always naming the commonest class would give 50.0%."
    )
    assert words in said


def test_a_model_no_better_than_the_commonest_class_is_called_so():
    said = verdict(summary(best=0.51, training=0.99))
    assert "no better than always naming the commonest class (50.0%)" in said
    assert "by heart" not in said


def test_without_validation_nothing_is_claimed_of_new_images():
    said = verdict(summary(best=None, split="train"))
    assert "1,000 training images" in said
    assert "nothing is known" in said


def test_a_model_made_elsewhere():
    assert (
        verdict(summary(best=None))
        == "Right on 73.5% of 1,000 validation images; always naming the commonest class would give 50.0%."
    )


def test_doubts():
    assert doubts(summary(), "finished") == []
    assert doubts(summary(best=0.739), "") == []
    assert "73.5% on this shard set, but training recorded 80.0%" in doubts(summary(best=0.8), "finished")[0]
    assert "not finished (state: failed)" in doubts(summary(), "failed")[0]
