"""Loss scaling: halved by an overflow, doubled after a long time without."""

from __future__ import annotations

import pytest
import tensorflow as tf

from service.training.loss_scale import GROWTH_INTERVAL, INITIAL_SCALE, LossScale


def read_state(loss_scale: LossScale) -> tuple[float, float]:
    scale, finite_updates = (float(v.numpy()) for v in loss_scale.variables)
    return scale, finite_updates


def test_an_overflow_halves_the_scale_and_is_no_failure() -> None:
    loss_scale = LossScale()
    update = tf.function(loss_scale.update)
    assert bool(update(tf.constant(True)))
    assert read_state(loss_scale) == (INITIAL_SCALE, 1.0)
    assert bool(update(tf.constant(False)))
    assert read_state(loss_scale) == (INITIAL_SCALE / 2, 0.0)
    assert float(loss_scale.read()) == INITIAL_SCALE / 2


def test_an_overflow_at_the_smallest_scale_is_a_failure() -> None:
    loss_scale = LossScale()
    loss_scale.variables[0].assign(2.0)
    assert bool(loss_scale.update(tf.constant(False)))
    assert read_state(loss_scale) == (1.0, 0.0)
    assert not bool(loss_scale.update(tf.constant(False)))
    assert read_state(loss_scale) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("before", "scale", "after"),
    [
        (GROWTH_INTERVAL - 2, INITIAL_SCALE, GROWTH_INTERVAL - 1),
        (GROWTH_INTERVAL - 1, 2 * INITIAL_SCALE, 0.0),
    ],
)
def test_the_scale_doubles_after_many_finite_updates(before: float, scale: float, after: float) -> None:
    loss_scale = LossScale()
    loss_scale.variables[1].assign(before)
    assert bool(loss_scale.update(tf.constant(True)))
    assert read_state(loss_scale) == (scale, after)
