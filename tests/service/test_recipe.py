"""Recipes: which settings are valid, in which combinations, and the pure functions of a recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml

from pipelines.errors import ConfigError
from pipelines.spec import check
from service.config import RunConfig, load_config
from service.recipe import (
    EarlyStoppingSpec,
    OptimizerSpec,
    class_weight_table,
    find_last_improvement,
    should_stop,
)

EVERYTHING = [
    "optimizer={name: sgd, momentum: 0.9, nesterov: true, weight_decay: 0.0001}",
    "optimizer.no_decay='*/bias'",
    "optimizer.clip_norm=1",
    "schedule={name: step, boundaries: [2, 3], factor: 0.5, warmup_epochs: 0.5, warmup_from: 0.1}",
    "epochs=4",
    "stages=[{epochs: 1}, {epochs: 3, learning_rate: 0.1, "
    "schedule: {name: one_cycle, div: 10, pct_start: 0.5}, train: block5*}]",
    "freeze='*'",
    "label_smoothing=0.1",
    "class_weights={cat: 2, 7: 0.5}",
    "accumulate=2",
    "ema=0.99",
    "early_stopping={metric: val_accuracy, patience: 2}",
    "evaluate_every=2",
]


def config(*overrides: str) -> RunConfig:
    return load_config("mnist_cnn", "shards", list(overrides))


def test_every_setting_is_read_and_restored_from_the_file_of_a_run() -> None:
    full = config(*EVERYTHING)
    assert full.optimizer.no_decay == ("*/bias",)
    assert (full.freeze, full.stages[1].train, full.stages[0].train) == (("*",), ("block5*",), ())
    assert full.class_weights == {"cat": 2.0, "7": 0.5}
    assert full.schedule.boundaries == (2, 3)
    for one in (
        full,
        config(),
        config("optimizer.name=lion"),
        config("schedule.name=cosine"),
        config("class_weights=balanced"),
    ):
        assert (
            check(RunConfig, yaml.safe_load(yaml.safe_dump(one.model_dump(mode="json"))), "the file") == one
        )


def test_defaults_of_a_preset_without_a_recipe() -> None:
    plain = config()
    assert (plain.schedule.name, plain.stages, plain.freeze, plain.accumulate, plain.evaluate_every) == (
        "constant",
        (),
        (),
        1,
        1,
    )
    assert plain.label_smoothing == 0.0
    assert [
        plain.ema,
        plain.early_stopping,
        plain.class_weights,
        plain.optimizer.weight_decay,
        plain.optimizer.clip_norm,
    ] == [None] * 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optimizer={name: adam, momentum: 0.9}",
            "optimizer.momentum: momentum goes with sgd and rmsprop alone, not with adam",
        ),
        ("optimizer={name: rmsprop, nesterov: true}", "nesterov goes with sgd alone"),
        ("optimizer={name: sgd, nesterov: true}", "nesterov needs a momentum"),
        ("optimizer={name: sgd, beta_1: 0.8}", "beta_1 goes with adam and adamw and lamb and lion alone"),
        ("optimizer={name: lion, epsilon: 0.001}", "epsilon goes with rmsprop and adam"),
        ("optimizer={name: lamb, l2: 0.1}", "l2 goes with sgd alone, not with lamb"),
        ("optimizer={name: sgd, l2: 0.1, weight_decay: 0.1}", "give weight_decay or l2, not both"),
        ("optimizer.beta_2=1", "beta_2"),
        ("optimizer.weight_decay=-1", "weight_decay"),
        ("optimizer.clip_norm=0", "clip_norm"),
        ("optimizer.name=adamax", "'adamw', 'lamb' or 'lion'"),
        ("schedule.factor=0.5", "factor goes with step alone, not with constant"),
        ("schedule={name: cosine, boundaries: [1]}", "boundaries goes with step alone"),
        ("schedule={name: step, boundaries: [1], end: 0.1}", "end goes with cosine and one_cycle alone"),
        (
            "schedule={name: one_cycle, warmup_steps: 3}",
            "warmup_steps goes with constant and cosine and step alone",
        ),
        ("schedule={name: cosine, div: 3}", "div goes with one_cycle alone"),
        ("schedule={warmup_steps: 3, warmup_epochs: 1}", "warmup_steps or warmup_epochs, not both"),
        ("schedule={name: step}", "schedule.boundaries: step needs the epochs"),
        ("schedule={name: step, boundaries: [3, 2, 3]}", "boundaries ascend, such as [2, 3]"),
        ("schedule.warmup_from=1.5", "warmup_from"),
        ("stages=[{epochs: 2}, {epochs: 1}]", "add up to 3: set epochs=3, not 5"),
        ("stages=[{learning_rate: 1}]", "a value for stages.0.epochs"),
        ("freeze=['']", "freeze.0"),
        ("label_smoothing=1", "label_smoothing"),
        ("bce_threshold=0.2", "the threshold goes with loss=bce alone"),
        ("ema=1", "ema"),
        ("accumulate=0", "accumulate"),
        ("class_weights=even", "class_weights: class weights are 'balanced'"),
        ("class_weights={cat: -1}", "the weight of the class cat is a number above 0, not -1"),
        ("class_weights={cat: true}", "the weight of the class cat is a number above 0, not True"),
        ("early_stopping.metric=auc", "early_stopping.metric"),
        ("early_stopping.patient=3", "Fix: use patience"),
    ],
)
def test_invalid_settings_and_combinations_are_one_clear_error(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        config(override)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("losses", "settings", "epochs"),
    [
        ([3, 2, 1, 0.5], {"patience": 1}, None),
        ([3, 2, 2, 1], {"patience": 1}, 3),  # equal to the best is no improvement
        ([3, 2, 2.5, 2.2, 1], {"patience": 2}, 4),
        ([3, 2, 2.5, 1.9, 2, 2], {"patience": 2}, 6),  # patience starts again at epoch 4
        ([3, 2.95, 2.9, 2.85], {"patience": 3, "min_delta": 0.5}, 4),
        # Compared with the best, not with the epoch before
        (
            [3, 2.95, 2.9, 2.4],
            {"patience": 3, "min_delta": 0.5},
            None,
        ),
        ([3, None, None, 4], {"patience": 2}, 4),  # an epoch without the metric never stops training
        ([3, None, None, 2], {"patience": 2}, None),
        ([float("nan"), float("nan"), 1], {"patience": 2}, 2),
        ([None, None, None], {"patience": 1}, None),
    ],
)
def test_training_stops_at_the_epoch_where_patience_ends(
    losses: list[float | None], settings: dict[str, Any], epochs: int | None
) -> None:
    spec = EarlyStoppingSpec(**settings)
    history = [{"loss": 1.0} if loss is None else {"loss": 1.0, "val_loss": float(loss)} for loss in losses]
    ends = [n for n in range(len(history) + 1) if should_stop(history[:n], spec)]
    assert (ends[0] if ends else None) == epochs


def test_an_accuracy_has_to_increase() -> None:
    history = [{"val_accuracy": value} for value in (0.5, 0.6, 0.7, 0.7)]
    spec = EarlyStoppingSpec(metric="val_accuracy", patience=1)
    assert [should_stop(history[:n], spec) for n in (1, 2, 3, 4)] == [False, False, False, True]


def test_an_accuracy_that_is_measured_every_other_epoch_is_not_compared_with_the_epochs_between() -> None:
    values = (None, 0.5, None, 0.6, None, 0.7, None, 0.7, None, 0.7)
    history = [{"loss": 1.0} if value is None else {"val_accuracy": value} for value in values]
    spec = EarlyStoppingSpec(metric="val_accuracy", patience=4)
    stops = [epochs for epochs in range(len(history) + 1) if should_stop(history[:epochs], spec)]
    assert stops == [10]
    assert find_last_improvement(history, spec) == 5


def test_class_weights() -> None:
    names = ("cat", "dog", "fox")
    balanced = class_weight_table("balanced", names, (10, 30, 20))
    assert balanced.dtype == np.float32
    np.testing.assert_allclose(balanced, [2.0, 2 / 3, 1.0], rtol=1e-6)  # 60 / (3 * count)
    # 40 / (2 * count)
    np.testing.assert_allclose(
        class_weight_table("balanced", names, (10, 30, 0)), [2.0, 2 / 3, 1.0], rtol=1e-6
    )
    assert class_weight_table({"fox": 3.0}, names, (1, 1, 1)).tolist() == [1.0, 1.0, 3.0]
    assert class_weight_table(None, names, (1, 1, 1)).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ConfigError, match=r"Received: class_weights\.dgo=2\.0\. Fix: use dog\."):
        class_weight_table({"cat": 1.0, "dgo": 2.0}, names, (1, 1, 1))


def test_the_batch_scales_the_weight_decay_and_what_was_inferred_is_described() -> None:
    spec = OptimizerSpec(learning_rate=0.1, weight_decay=0.02, scale="linear", decay_scale="sqrt")
    assert spec.scale_weight_decay(1024) == pytest.approx(0.04)
    assert spec.describe_scaling(1024) == (
        "learning rate 0.4 (linear from 0.1) and weight decay 0.04 (sqrt from 0.02): "
        "1024 images per update, settings are for 256"
    )
    plain = OptimizerSpec(weight_decay=0.02)
    assert (plain.scale_weight_decay(1024), plain.describe_scaling(1024)) == (0.02, None)
    assert OptimizerSpec(decay_scale="sqrt").scale_weight_decay(1024) is None
