"""The step: exact to the closed form, blind to padding, and the same one by one or many in a call."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from step_samples import batch_of, iterator, learned, linear_steps, some_batches, steps_for

from service.models import head
from service.training.step import Steps

WAYS: dict[str, dict[str, Any]] = {
    "plain": {"xla_update": False},
    "compiled update": {},
    "all compiled": {"xla": True},
}
RATES = (0.5, 0.25, 1.0, 0.125)


def flat(net: keras.Model) -> np.ndarray:
    return np.concatenate([weight.ravel() for weight in net.get_weights()])


def run(
    steps: Steps, batches: list[dict[str, tf.Tensor]], one_by_one: bool, every: int = 1, at_once: int = 3
) -> list[tuple[int | None, int]]:
    """All batches, some updates in a call or each by itself; returns what failed, and how many."""
    found, feed, update, left = [], iterator(batches), 0, len(batches)
    while left:
        micro = min(every, left)
        updates = 1 if one_by_one else max(1, min(at_once, left // every))
        if one_by_one:
            for n in range(micro):
                burst = steps.train_on(next(feed), update, last=n == micro - 1)
        else:
            burst = steps.train(feed, update, updates, micro)
        found.append((burst.failed, burst.skipped))
        update, left = update + updates, left - updates * micro
    return found


def test_one_update_is_the_mean_gradient_over_the_examples_that_count() -> None:
    net, steps = linear_steps(0.5)
    burst = steps.train_on(batch_of([[2, 0], [0, 4], [9, 9]], [1, 0, 1], [1.0, 1.0, 0.0]), 0)
    # at zero weights p = 1/2, so the gradient of an example is (1/2 - label) * x; the third example is padding
    np.testing.assert_allclose(flat(net), [-0.5 * (-0.5 * 2) / 2, -0.5 * (0.5 * 4) / 2, 0.0], rtol=1e-6)
    assert [rows.tolist() for rows in burst.rows] == [[0, 1, 2]]
    loss, hits, near, weight = steps.totals()
    assert (hits, near, weight) == (1, 1, 2)  # a logit of 0 says class 0: right for the second example alone
    assert loss == pytest.approx(2 * np.log(2), rel=1e-6)
    assert steps.local_totals() == (loss, hits, near, weight)


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_updates_follow_the_closed_form(way: str, one_by_one: bool) -> None:
    net, steps = linear_steps(*RATES, momentum=0.9, clip_norm=0.3, ema=0.3, **WAYS[way])
    batches = some_batches(5)
    assert run(steps, batches, one_by_one) == [(None, 0)] * (5 if one_by_one else 2)
    weights, average = learned(
        [[batch] for batch in batches], [*RATES, RATES[-1]], momentum=0.9, clip=0.3, ema=0.3
    )
    unclipped, _ = learned([[batch] for batch in batches], [*RATES, RATES[-1]], momentum=0.9)
    assert np.abs(weights - unclipped).max() > 0.1
    np.testing.assert_allclose(flat(net), weights, rtol=1e-5)
    np.testing.assert_allclose(
        np.concatenate([v.numpy().ravel() for v in steps.average.variables]), average, rtol=1e-5
    )
    assert steps.traces == (0 if one_by_one else 1)
    assert steps.totals()[3] == 18


@pytest.mark.parametrize("one_by_one", [False, True])
def test_some_batches_make_one_update_and_what_is_left_another(one_by_one: bool) -> None:
    net, steps = linear_steps(*RATES, accumulate=2)
    batches = some_batches(7)
    run(steps, batches, one_by_one, every=2, at_once=2)
    expected, _ = learned([batches[:2], batches[2:4], batches[4:6], batches[6:]], RATES)
    np.testing.assert_allclose(flat(net), expected, rtol=1e-5)
    assert steps.traces == (0 if one_by_one else 1)


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_an_update_that_is_not_finite_changes_nothing(way: str, accumulate: int, one_by_one: bool) -> None:
    net, steps = linear_steps(
        *RATES, momentum=0.9, clip_norm=0.3, ema=0.3, accumulate=accumulate, **WAYS[way]
    )
    batches = some_batches(4 * accumulate)
    batches[accumulate]["image"] += np.float32([np.nan, 0, 0, 0])[
        :, None, None, None
    ]  # one image, in the second update
    found = run(steps, batches, one_by_one, every=accumulate)
    assert found == ([(None, 0), (1, 1), (None, 0), (None, 0)] if one_by_one else [(1, 1), (None, 0)])
    updates = [batches[n * accumulate : (n + 1) * accumulate] for n in (0, 2, 3)]
    weights, average = learned(updates, [RATES[n] for n in (0, 2, 3)], momentum=0.9, clip=0.3, ema=0.3)
    np.testing.assert_allclose(flat(net), weights, rtol=1e-5)
    np.testing.assert_allclose(
        np.concatenate([v.numpy().ravel() for v in steps.average.variables]), average, rtol=1e-5
    )
    assert int(steps._optimizer.iterations.numpy()) == 3
    assert steps.totals()[3] == 16 * accumulate - 2 - 4  # neither the padding nor the batch that has no loss
    assert np.isfinite(steps.totals()[0])


def test_the_first_of_several_failures_is_named() -> None:
    _, steps = linear_steps(0.5)
    batches = some_batches(5)
    for n in (2, 3):
        batches[n]["image"] *= np.float32(np.nan)
    burst = steps.train(iterator(batches), 10, 5)
    assert (burst.failed, burst.skipped) == (12, 2)


@pytest.mark.parametrize("way", WAYS)
def test_a_scaled_loss_teaches_the_same(way: str) -> None:
    batches = some_batches(3)
    (plain, steps), (scaled, other) = (
        linear_steps(*RATES, clip_norm=10.0, scaled=on, **WAYS[way]) for on in (False, True)
    )
    run(steps, batches, False)
    run(other, batches, False)
    np.testing.assert_allclose(flat(scaled), flat(plain), rtol=1e-6)
    assert [float(v.numpy()) for v in other.scale.variables] == [2.0**15, 3.0]
    assert other.totals() == pytest.approx(steps.totals())  # the loss that is told is not scaled


@pytest.mark.parametrize("way", WAYS)
def test_an_overflow_is_skipped_and_mended(way: str) -> None:
    net, steps = linear_steps(0.5, scaled=True, **WAYS[way])
    steps.scale.variables[0].assign(2.0**126)
    batch = batch_of([[16, 0]], [1])  # a gradient of 2**3: a float32 can hold 2**124 times that
    assert [steps.train_on(batch, 0).failed for _ in range(2)] == [None] * 2
    assert [float(v.numpy()) for v in steps.scale.variables] == [2.0**124, 0.0]
    assert not flat(net).any()
    steps.train_on(batch, 0)
    np.testing.assert_allclose(flat(net), [4, 0, 0.25], rtol=1e-6)
    assert [float(v.numpy()) for v in steps.scale.variables] == [2.0**124, 1.0]


def test_a_failure_that_no_scale_can_mend_is_told() -> None:
    _, steps = linear_steps(0.5, scaled=True)
    bad = batch_of([[np.nan, 0]], [1])
    assert [steps.train_on(bad, n).failed for n in range(17)] == [None] * 15 + [15, 16]


def test_answers_among_the_first_five_are_counted_from_six_classes_on() -> None:
    inputs = keras.Input((1, 1, 1))
    net = keras.Model(inputs, head(keras.layers.Flatten()(inputs), 7))
    net.set_weights(
        [np.zeros((1, 7), np.float32), np.arange(7, dtype=np.float32)]
    )  # class 6 first, then 5, 4, ...
    steps = steps_for(net, keras.optimizers.SGD(), [0.0])
    steps.train_on(batch_of([[0]] * 6, [6, 5, 2, 1, 0, 6], [1.0] * 5 + [0.0]), 0)
    assert steps.totals()[1:] == (1, 3, 5)


def test_sums_are_taken_up_where_they_were() -> None:
    _, steps = linear_steps(0.0)
    steps.start(2, 3, seed=5, sums=(1.5, 2.0, 3.0, 4.0))
    assert steps.totals() == (1.5, 2.0, 3.0, 4.0)
    steps.train_on(batch_of([[0, 0]], [0]), 0)
    assert steps.totals() == pytest.approx((1.5 + np.log(2), 3, 4, 5))
    steps.start(3, 0, seed=5)
    assert steps.totals() == (0, 0, 0, 0)


def test_dropout_is_that_of_seed_epoch_step_and_layer() -> None:
    inputs = keras.Input((1, 1, 64))
    drops = [keras.layers.Dropout(0.5, name=f"drop{n}") for n in range(2)]
    flat = keras.layers.Flatten()(inputs)
    features = keras.layers.Concatenate()([drop(flat) for drop in drops])
    net = keras.Model(inputs, head(features, 2))
    steps, ones = steps_for(net, keras.optimizers.SGD()), np.ones((1, 1, 1, 64), np.float32)
    masks = keras.Model(inputs, features)

    def drawn(epoch: int, step: int, seed: int = 5) -> np.ndarray:
        steps.start(epoch, step, seed)
        return np.asarray(masks(ones, training=True))[0]

    first = drawn(1, 0)
    second = np.asarray(masks(ones, training=True))[0]  # of the batch that follows
    np.testing.assert_array_equal(drawn(1, 1), second)
    np.testing.assert_array_equal(drawn(1, 0), first)
    different = [first, second, drawn(2, 0), drawn(1, 0, seed=6)]
    assert len({tuple(mask) for mask in different}) == 4
    assert not np.array_equal(first[:64], first[64:])
