"""Loss scaling."""

from __future__ import annotations

import pytest
import tensorflow as tf

from service.training.loss_scale import INITIAL_SCALE, GROWTH_INTERVAL, LossScale


def state(scale: LossScale) -> tuple[float, float]:
    factor, good = (float(v.numpy()) for v in scale.variables)
    return factor, good


def test_an_overflow_halves_the_factor_and_is_no_failure() -> None:
    scale = LossScale()
    adapted = tf.function(scale.update)
    assert bool(adapted(tf.constant(True)))
    assert state(scale) == (INITIAL_SCALE, 1.0)
    assert bool(adapted(tf.constant(False)))
    assert state(scale) == (INITIAL_SCALE / 2, 0.0)
    assert float(scale.read()) == INITIAL_SCALE / 2


def test_the_smallest_factor_stays_and_cannot_mend_anything() -> None:
    scale = LossScale()
    scale.variables[0].assign(2.0)
    assert bool(scale.update(tf.constant(False)))
    assert state(scale) == (1.0, 0.0)
    assert not bool(scale.update(tf.constant(False)))
    assert state(scale) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("lasted", "factor", "good"), [(GROWTH_INTERVAL - 2, INITIAL_SCALE, GROWTH_INTERVAL - 1), (GROWTH_INTERVAL - 1, 2 * INITIAL_SCALE, 0.0)]
)
def test_the_factor_doubles_after_a_long_time_without(lasted: float, factor: float, good: float) -> None:
    scale = LossScale()
    scale.variables[1].assign(lasted)
    assert bool(scale.update(tf.constant(True)))
    assert state(scale) == (factor, good)
