"""The moving average of the weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from service.training.average import WeightAverage


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
    update()
    assert value(average) == [0.75 * 1 + 0.25 * 5, 0.75 * -2 + 0.25 * 6]
    update()
    assert value(average) == [0.75 * 2 + 0.25 * 5, 0.75 * 0 + 0.25 * 6]
    assert weight.numpy().tolist() == [5.0, 6.0]


def test_the_average_stands_in_for_the_weights_for_a_while() -> None:
    weight, average = averaged()
    weight.assign([5.0, 6.0])
    with average.in_place():
        assert weight.numpy().tolist() == [1.0, -2.0]
    assert (weight.numpy().tolist(), value(average)) == ([5.0, 6.0], [1.0, -2.0])
    with pytest.raises(ZeroDivisionError), average.in_place():
        raise ZeroDivisionError
    assert weight.numpy().tolist() == [5.0, 6.0]


def test_a_restart_is_at_the_weights() -> None:
    weight, average = averaged()
    weight.assign([5.0, 6.0])
    average.restart()
    assert value(average) == [5.0, 6.0]
    weight.assign([1.0, 1.0])
    assert value(average) == [5.0, 6.0]
