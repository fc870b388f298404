"""The moving average of the weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from service.training.average import WeightAverage

LATE = 1000  # updates after which only the decay counts


def averaged() -> tuple[keras.Variable, WeightAverage]:
    weight = keras.Variable(np.float32([1.0, -2.0]))
    return weight, WeightAverage(tf.distribute.get_strategy(), [weight], 0.75)


def value(average: WeightAverage) -> list[float]:
    return average.variables[0].numpy().tolist()


@pytest.mark.parametrize("compiled", [False, True])
def test_an_update_keeps_a_share_of_the_average(compiled: bool) -> None:
    weight, average = averaged()
    update = tf.function(average.update) if compiled else average.update
    assert value(average) == [1.0, -2.0]
    weight.assign([5.0, 6.0])
    update(tf.constant(LATE))
    assert value(average) == [0.75 * 1 + 0.25 * 5, 0.75 * -2 + 0.25 * 6]
    update(tf.constant(LATE))
    assert value(average) == [0.75 * 2 + 0.25 * 5, 0.75 * 0 + 0.25 * 6]
    assert weight.numpy().tolist() == [5.0, 6.0]


@pytest.mark.parametrize(
    ("made", "share"), [(0, 0.1), (1, 2 / 11), (8, 0.5), (25, 26 / 35), (26, 0.75), (10**9, 0.75)]
)
def test_early_updates_keep_less(made: int, share: float) -> None:
    weight, average = averaged()
    weight.assign([0.0, 0.0])
    average.update(tf.constant(made, tf.int64))
    np.testing.assert_allclose(value(average), [share, -2 * share], rtol=1e-6)


def test_a_short_training_forgets_its_first_weights() -> None:
    """After three epochs of 31 updates 0.995 alone would keep 63 % of them."""
    weight = keras.Variable(np.float32([1.0]))
    average = WeightAverage(tf.distribute.get_strategy(), [weight], 0.995)
    weight.assign([0.0])
    for made in range(1, 94):
        average.update(tf.constant(made, tf.int64))
    assert value(average)[0] < 1e-6


def test_the_average_stands_in_for_the_weights_for_a_while() -> None:
    weight, average = averaged()
    weight.assign([5.0, 6.0])
    with average.swap_in():
        assert weight.numpy().tolist() == [1.0, -2.0]
    assert (weight.numpy().tolist(), value(average)) == ([5.0, 6.0], [1.0, -2.0])
    with pytest.raises(ZeroDivisionError), average.swap_in():
        raise ZeroDivisionError
    assert weight.numpy().tolist() == [5.0, 6.0]


def test_a_restart_is_at_the_weights() -> None:
    weight, average = averaged()
    weight.assign([5.0, 6.0])
    average.restart()
    assert value(average) == [5.0, 6.0]
    weight.assign([1.0, 1.0])
    assert value(average) == [5.0, 6.0]
