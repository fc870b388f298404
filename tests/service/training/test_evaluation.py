"""Evaluation against NumPy: every row once, padding never."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf
from training_samples import config_for, noise_shards

from pipelines.input.batches import Batches, read_rows
from pipelines.input.cache import CacheBudget
from pipelines.input.dali import KEPT
from service.models.layers import add_head, build_logits_model
from service.training.evaluation import IN_FLIGHT, Evaluation

ROWS = 29  # three batches of eight, and one with three rows of padding


def network(classes: int) -> keras.Model:
    """Far from right, but better than chance; and drops and normalizes in training alone."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((12, 12, 3))
    x = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(keras.layers.Rescaling(1 / 20)(inputs)))
    return keras.Model(inputs, add_head(keras.layers.Flatten()(x), classes))


@pytest.fixture(scope="module", params=[2, 3, 7])
def evaluated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Evaluation, np.ndarray, np.ndarray]]:
    """An evaluation, the probabilities that Keras predicts, and the labels."""
    shards = noise_shards(
        tmp_path_factory.mktemp("evaluation") / "shards", rows=1, held_out=ROWS, classes=request.param
    )
    data = config_for(
        shards, data={"image_size": [12, 12], "cache": "device" if request.param == 3 else "none"}
    ).data
    strategy, net = tf.distribute.get_strategy(), network(request.param)
    batches = Batches(shards, "validation", data, 8, cache=CacheBudget(strategy))
    found = read_rows(shards, "validation", data, range(ROWS))
    likely = net.predict(found["image"].astype(np.float32), verbose=0).astype(np.float64)
    return (
        Evaluation(build_logits_model(net), strategy, batches),
        np.c_[1 - likely, likely] if request.param == 2 else likely,
        found["label"],
    )


def test_metrics_are_those_of_every_row_once(evaluated: tuple[Evaluation, np.ndarray, np.ndarray]) -> None:
    evaluation, likely, labels = evaluated
    found, classes = evaluation.compute_metrics(), likely.shape[1]
    true = likely[np.arange(ROWS), labels]
    right = likely.argmax(axis=1) == labels
    assert 0 < right.sum() < ROWS
    assert found["val_loss"] == pytest.approx(-np.log(true).mean(), rel=1e-4)
    assert found["val_accuracy"] == pytest.approx(right.mean(), abs=1e-12)
    assert sorted(found) == sorted(
        ["val_accuracy", "val_loss", *{2: ["val_auc"], 7: ["val_top5"]}.get(classes, [])]
    )
    if classes == 7:
        near = (likely > true[:, None]).sum(axis=1) < 5
        assert right.sum() < near.sum() < ROWS
        assert found["val_top5"] == pytest.approx(near.mean(), abs=1e-12)
    if classes == 2:
        pairs = likely[labels == 1, 1][:, None] - likely[labels == 0, 1]
        assert found["val_auc"] == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean(), abs=1e-9)


def test_answers_are_in_the_order_of_the_rows(evaluated: tuple[Evaluation, np.ndarray, np.ndarray]) -> None:
    evaluation, likely, labels = evaluated
    answers = evaluation.score_rows()
    np.testing.assert_allclose(
        answers["loss"], -np.log(likely[np.arange(ROWS), labels]), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_array_equal(answers["predicted"], likely.argmax(axis=1))
    np.testing.assert_array_equal(answers["rank"] == 0, likely.argmax(axis=1) == labels)
    if likely.shape[1] == 2:
        np.testing.assert_allclose(
            answers["score"], np.log(likely[:, 1] / likely[:, 0]), rtol=1e-3, atol=1e-4
        )
    assert evaluation._score_batch.experimental_get_tracing_count() == 1


def test_answers_are_taken_before_their_images_may_be_overwritten(
    evaluated: tuple[Evaluation, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation, _, _ = evaluated
    answer, given, waiting = evaluation._score_batch, [], []

    def watched(batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        waiting.append(sum(reference() is not None for reference in given))
        answers = answer(batch)
        given.append(weakref.ref(answers[1]))
        return answers

    monkeypatch.setattr(evaluation, "_score_batch", watched)
    evaluation.score_rows()
    assert waiting == [0, 1, IN_FLIGHT, IN_FLIGHT]
    assert IN_FLIGHT < KEPT  # of DALI's batches, on a GPU
