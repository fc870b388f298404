"""Evaluation against NumPy: every row once, padding never."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from training_samples import config_for, noise_shards

from pipelines.input.batches import Batches, read_rows
from pipelines.input.cache import CacheBudget
from service.models.layers import add_head, build_logits_model
from service.training.evaluation import IN_FLIGHT, Evaluation

ROWS = 29  # three batches of eight, and one with three rows of padding
Evaluated = tuple[Evaluation, np.ndarray, np.ndarray]  # with probabilities [rows, classes], labels [rows]


def build_network(classes: int) -> keras.Model:
    """Better than chance and far from right; dropout and batch normalization differ in training."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((12, 12, 3))
    x = keras.layers.Rescaling(1 / 20)(inputs)
    x = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(x))
    return keras.Model(inputs, add_head(keras.layers.Flatten()(x), classes))


def write_shards(folder: Path, classes: int) -> Path:
    return noise_shards(folder / "shards", rows=1, held_out=ROWS, classes=classes)


@pytest.fixture(scope="module", params=[2, 3, 7])
def evaluated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """An evaluation, the probabilities that Keras predicts, and the labels."""
    classes = request.param
    shards = write_shards(tmp_path_factory.mktemp("evaluation"), classes)
    cache = "device" if classes == 3 else "none"
    data = config_for(shards, data={"image_size": [12, 12], "cache": cache}).data
    strategy = tf.distribute.get_strategy()
    network = build_network(classes)
    batches = Batches(shards, "validation", data, 8, cache=CacheBudget(strategy))
    rows = read_rows(shards, "validation", data, range(ROWS))
    probabilities = network.predict(rows["image"].astype(np.float32), verbose=0).astype(np.float64)
    if classes == 2:
        probabilities = np.c_[1 - probabilities, probabilities]
    return Evaluation(build_logits_model(network), strategy, batches), probabilities, rows["label"]


def test_the_metrics_count_every_row_once(evaluated: Evaluated) -> None:
    evaluation, probabilities, labels = evaluated
    metrics = evaluation.compute_metrics()
    classes = probabilities.shape[1]
    true = probabilities[np.arange(ROWS), labels]
    is_right = probabilities.argmax(axis=1) == labels
    assert 0 < is_right.sum() < ROWS
    assert metrics["val_loss"] == pytest.approx(-np.log(true).mean(), rel=1e-4)
    assert metrics["val_accuracy"] == pytest.approx(is_right.mean(), abs=1e-12)
    more = {2: {"val_auc"}, 3: set(), 7: {"val_top5"}}[classes]
    assert metrics.keys() == {"val_accuracy", "val_loss"} | more
    if classes == 7:
        is_near = (probabilities > true[:, None]).sum(axis=1) < 5
        assert is_right.sum() < is_near.sum() < ROWS
        assert metrics["val_top5"] == pytest.approx(is_near.mean(), abs=1e-12)
    if classes == 2:
        pairs = probabilities[labels == 1, 1][:, None] - probabilities[labels == 0, 1]
        area = ((pairs > 0) + (pairs == 0) / 2).mean()
        assert metrics["val_auc"] == pytest.approx(area, abs=1e-9)


def test_the_scores_are_in_the_order_of_the_rows(evaluated: Evaluated) -> None:
    evaluation, probabilities, labels = evaluated
    scores = evaluation.score_rows()
    losses = -np.log(probabilities[np.arange(ROWS), labels])
    np.testing.assert_allclose(scores["loss"], losses, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(scores["predicted"], probabilities.argmax(axis=1))
    np.testing.assert_array_equal(scores["rank"] == 0, probabilities.argmax(axis=1) == labels)
    if probabilities.shape[1] == 2:
        logits = np.log(probabilities[:, 1] / probabilities[:, 0])
        np.testing.assert_allclose(scores["score"], logits, rtol=1e-3, atol=1e-4)


def test_a_batch_is_scored_before_a_decoder_may_overwrite_it(tmp_path: Path) -> None:
    """Of the batches taken so far, none but the last few is still in use when another one is taken."""
    shards = write_shards(tmp_path, classes=2)
    data = config_for(shards).data
    alive: list[int] = []

    class CountingBatches(Batches):
        def epoch(self, *arguments: Any, **options: Any) -> Iterator[dict[str, tf.Tensor]]:
            references: list[weakref.ref[tf.Tensor]] = []
            for batch in super().epoch(*arguments, **options):
                alive.append(sum(reference() is not None for reference in references))
                references.append(weakref.ref(batch["image"]))
                yield batch
                del batch

    batches = CountingBatches(shards, "validation", data, 8)
    network = build_logits_model(build_network(2))
    Evaluation(network, tf.distribute.get_strategy(), batches).score_rows()
    assert len(alive) == 4
    assert max(alive) <= IN_FLIGHT
