"""The training step: equal to the closed form, independent of padding, in calls of one or many updates."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from step_samples import (
    Batch,
    build_linear_steps,
    build_steps,
    fit_logistic_regression,
    iterate,
    make_batch,
    make_batches,
)

from service.models.layers import add_head
from service.training.loop import train_eager_batches
from service.training.step import Steps

COMPILED: dict[str, dict[str, Any]] = {
    "nothing": {"xla_update": False},
    "update": {},
    "everything": {"xla": True},
}
RATES = (0.5, 0.25, 1.0, 0.125)
# Batches of a tf.data.Dataset are trained in calls of several updates, those of DALI one by one.
WAYS = [("nothing", True), *((compiled, False) for compiled in COMPILED)]


def flatten_weights(model: keras.Model) -> np.ndarray:
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


def flatten_average(steps: Steps) -> np.ndarray:
    return np.concatenate([v.numpy().ravel() for v in steps.average.variables])


def train_all(
    steps: Steps, batches: list[Batch], one_by_one: bool, accumulate: int = 1, updates_per_call: int = 3
) -> list[tuple[int | None, int]]:
    """Trains on all batches; returns the first skipped update and the number of skipped ones of each call."""
    outcomes = []
    iterator = iterate(batches)
    update = 0
    left = len(batches)
    while left:
        micro = min(accumulate, left)
        if one_by_one:
            updates = 1
            for part in range(micro):
                result = steps.train_batch(next(iterator), update, is_last=part == micro - 1)
        else:
            updates = max(1, min(updates_per_call, left // accumulate))
            result = steps.train(iterator, update, updates, micro)
        outcomes.append((result.first_skipped, result.skipped))
        update += updates
        left -= updates * micro
    return outcomes


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_from_python_are_trained_like_those_of_a_dataset(accumulate: int) -> None:
    """Also where their results are read only after later batches have been taken."""
    numbers = [3, 1, np.inf, 2, 5, np.inf, 4, 1]
    batches = [make_batch([[number, 1.0]], [0]) for number in numbers]
    found = []
    for train in (train_eager_batches, Steps.train):
        model, steps = build_linear_steps(0.1, accumulate=accumulate, record_rows=True)
        updates = len(batches) // accumulate
        result = train(steps, iterate(batches), 5, updates, accumulate)
        outcome = (result.first_skipped, result.skipped, np.concatenate(result.rows).tolist())
        found.append((outcome, steps.read_totals(), flatten_weights(model).tolist()))
    assert found[0] == found[1]
    (first_skipped, skipped, _), _, _ = found[0]
    assert (first_skipped, skipped) == ((7, 2) if accumulate == 1 else (6, 2))


def test_one_update_is_the_mean_gradient_over_the_examples_that_count() -> None:
    model, steps = build_linear_steps(0.5)
    steps.train_batch(make_batch([[2, 0], [0, 4], [9, 9]], [1, 0, 1], [1.0, 1.0, 0.0]), 0)
    # At zero weights p = 1/2: the gradient of an example is (1/2 - label) * x. The third one is padding.
    expected = [-0.5 * (-0.5 * 2) / 2, -0.5 * (0.5 * 4) / 2, 0.0]
    np.testing.assert_allclose(flatten_weights(model), expected, rtol=1e-6)
    loss, top1, top5, weight = steps.read_totals()
    assert (top1, top5, weight) == (1, 1, 2)  # a logit of 0 means class 0: right for the second example only
    assert loss == pytest.approx(2 * np.log(2), rel=1e-6)
    assert steps.read_local_totals() == (loss, top1, top5, weight)


@pytest.mark.parametrize(("compiled", "one_by_one"), WAYS)
def test_updates_equal_the_closed_form(compiled: str, one_by_one: bool) -> None:
    model, steps = build_linear_steps(
        *RATES, momentum=0.9, clip_norm=0.3, ema_decay=0.3, **COMPILED[compiled]
    )
    batches = make_batches(5)
    assert train_all(steps, batches, one_by_one) == [(None, 0)] * (5 if one_by_one else 2)
    updates = [[batch] for batch in batches]
    rates = [*RATES, RATES[-1]]
    weights, average = fit_logistic_regression(updates, rates, momentum=0.9, clip_norm=0.3, ema_decay=0.3)
    unclipped, _ = fit_logistic_regression(updates, rates, momentum=0.9)
    assert np.abs(weights - unclipped).max() > 0.1
    np.testing.assert_allclose(flatten_weights(model), weights, rtol=1e-5)
    np.testing.assert_allclose(flatten_average(steps), average, rtol=1e-5)
    assert steps.trace_count == (0 if one_by_one else 1)
    assert steps.read_totals()[3] == 18


@pytest.mark.parametrize("one_by_one", [False, True])
def test_several_batches_make_one_update_and_those_left_over_another(one_by_one: bool) -> None:
    model, steps = build_linear_steps(*RATES, accumulate=2)
    batches = make_batches(7)
    train_all(steps, batches, one_by_one, accumulate=2, updates_per_call=2)
    updates = [batches[:2], batches[2:4], batches[4:6], batches[6:]]
    expected, _ = fit_logistic_regression(updates, RATES)
    np.testing.assert_allclose(flatten_weights(model), expected, rtol=1e-5)
    assert steps.trace_count == (0 if one_by_one else 1)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("compiled", "one_by_one"), WAYS)
def test_an_update_that_is_not_finite_changes_nothing(
    compiled: str, one_by_one: bool, accumulate: int
) -> None:
    model, steps = build_linear_steps(
        *RATES, momentum=0.9, clip_norm=0.3, ema_decay=0.3, accumulate=accumulate, **COMPILED[compiled]
    )
    batches = make_batches(4 * accumulate)
    # one image, in the second update
    batches[accumulate]["image"] += np.float32([np.nan, 0, 0, 0])[:, None, None, None]
    outcomes = train_all(steps, batches, one_by_one, accumulate)
    if one_by_one:
        assert outcomes == [(None, 0), (1, 1), (None, 0), (None, 0)]
    else:
        assert outcomes == [(1, 1), (None, 0)]
    updates = [batches[n * accumulate : (n + 1) * accumulate] for n in (0, 2, 3)]
    rates = [RATES[n] for n in (0, 2, 3)]
    weights, average = fit_logistic_regression(updates, rates, momentum=0.9, clip_norm=0.3, ema_decay=0.3)
    np.testing.assert_allclose(flatten_weights(model), weights, rtol=1e-5)
    np.testing.assert_allclose(flatten_average(steps), average, rtol=1e-5)
    loss, _, _, weight = steps.read_totals()
    assert weight == 16 * accumulate - 2 - 4  # neither the padding nor the batch without a finite loss
    assert np.isfinite(loss)


def test_the_first_of_several_skipped_updates_is_reported() -> None:
    _, steps = build_linear_steps(0.5)
    batches = make_batches(5)
    for n in (2, 3):
        batches[n]["image"] *= np.float32(np.nan)
    result = steps.train(iterate(batches), 10, 5)
    assert (result.first_skipped, result.skipped) == (12, 2)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_compiled_step_reports_the_rows_it_took(accumulate: int) -> None:
    """Of each batch in turn, and the weights are the same to the bit whether or not rows are recorded."""
    batches = make_batches(5)
    rows = [batch["row"].numpy().tolist() for batch in batches]
    weights = []
    for record_rows in (True, False):
        model, steps = build_linear_steps(*RATES, accumulate=accumulate, record_rows=record_rows)
        iterator = iterate(batches)
        updates = 4 // accumulate
        results = [steps.train(iterator, 0, updates, accumulate), steps.train(iterator, updates, 1)]
        reported = [[batch.tolist() for batch in result.rows] for result in results]
        assert reported == ([rows[:4], rows[4:]] if record_rows else [[], []])
        assert steps.trace_count == 1
        weights.append(flatten_weights(model))
    np.testing.assert_array_equal(*weights)


def test_a_single_batch_reports_its_rows() -> None:
    _, steps = build_linear_steps(0.5, record_rows=True)
    result = steps.train_batch(make_batches(1)[0], 0)
    assert [rows.tolist() for rows in result.rows] == [[0, 1, 2, 3]]


@pytest.mark.parametrize("compiled", COMPILED)
def test_a_scaled_loss_trains_the_same_weights(compiled: str) -> None:
    batches = make_batches(3)
    plain_model, plain = build_linear_steps(*RATES, clip_norm=10.0, **COMPILED[compiled])
    scaled_model, scaled = build_linear_steps(*RATES, clip_norm=10.0, scale_loss=True, **COMPILED[compiled])
    train_all(plain, batches, one_by_one=False)
    train_all(scaled, batches, one_by_one=False)
    np.testing.assert_allclose(flatten_weights(scaled_model), flatten_weights(plain_model), rtol=1e-6)
    assert [float(v.numpy()) for v in scaled.loss_scale.variables] == [2.0**15, 3.0]
    assert scaled.read_totals() == pytest.approx(plain.read_totals())  # the loss in the totals is not scaled


@pytest.mark.parametrize("compiled", COMPILED)
def test_an_overflow_is_skipped_and_the_scale_falls_until_it_fits(compiled: str) -> None:
    model, steps = build_linear_steps(0.5, scale_loss=True, **COMPILED[compiled])
    steps.loss_scale.variables[0].assign(2.0**126)
    batch = make_batch([[16, 0]], [1])  # a gradient of 2**3: float32 holds 2**124 times as much
    for _ in range(2):
        assert steps.train_batch(batch, 0).first_skipped is None
    assert [float(v.numpy()) for v in steps.loss_scale.variables] == [2.0**124, 0.0]
    assert not flatten_weights(model).any()
    steps.train_batch(batch, 0)
    np.testing.assert_allclose(flatten_weights(model), [4, 0, 0.25], rtol=1e-6)
    assert [float(v.numpy()) for v in steps.loss_scale.variables] == [2.0**124, 1.0]


def test_an_overflow_at_the_smallest_scale_is_reported() -> None:
    _, steps = build_linear_steps(0.5, scale_loss=True)
    batch = make_batch([[np.nan, 0]], [1])
    first_skipped = [steps.train_batch(batch, n).first_skipped for n in range(17)]
    assert first_skipped == [None] * 15 + [15, 16]


def test_top5_is_counted_from_six_classes_on() -> None:
    inputs = keras.Input((1, 1, 1))
    model = keras.Model(inputs, add_head(keras.layers.Flatten()(inputs), 7))
    bias = np.arange(7, dtype=np.float32)  # class 6 is the most probable, then 5, 4, ...
    model.set_weights([np.zeros((1, 7), np.float32), bias])
    steps = build_steps(model, keras.optimizers.SGD(), [0.0])
    steps.train_batch(make_batch([[0]] * 6, [6, 5, 2, 1, 0, 6], [1.0] * 5 + [0.0]), 0)
    assert steps.read_totals()[1:] == (1, 3, 5)


def test_totals_continue_from_those_of_a_checkpoint() -> None:
    _, steps = build_linear_steps(0.0)
    steps.start(2, 3, seed=5, sums=(1.5, 2.0, 3.0, 4.0))
    assert steps.read_totals() == (1.5, 2.0, 3.0, 4.0)
    steps.train_batch(make_batch([[0, 0]], [0]), 0)
    assert steps.read_totals() == pytest.approx((1.5 + np.log(2), 3, 4, 5))
    steps.start(3, 0, seed=5)
    assert steps.read_totals() == (0, 0, 0, 0)


def test_dropout_depends_on_seed_epoch_step_and_layer() -> None:
    inputs = keras.Input((1, 1, 64))
    pixels = keras.layers.Flatten()(inputs)
    dropouts = [keras.layers.Dropout(0.5, name=f"drop{n}") for n in range(2)]
    features = keras.layers.Concatenate()([dropout(pixels) for dropout in dropouts])
    steps = build_steps(keras.Model(inputs, add_head(features, 2)), keras.optimizers.SGD())
    masks = keras.Model(inputs, features)
    ones = np.ones((1, 1, 1, 64), np.float32)

    def draw_at(epoch: int, step: int, seed: int = 5) -> np.ndarray:
        steps.start(epoch, step, seed)
        return np.asarray(masks(ones, training=True))[0]

    first = draw_at(1, 0)
    second = np.asarray(masks(ones, training=True))[0]  # of the batch that follows
    np.testing.assert_array_equal(draw_at(1, 1), second)
    np.testing.assert_array_equal(draw_at(1, 0), first)
    different = [first, second, draw_at(2, 0), draw_at(1, 0, seed=6)]
    assert len({tuple(mask) for mask in different}) == 4
    assert not np.array_equal(first[:64], first[64:])
