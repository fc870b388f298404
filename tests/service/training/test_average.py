"""The moving average of the weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from service.training.average import WeightAverage

LATE = 1000  # updates after which the warmup of the decay is over


def create_average() -> tuple[keras.Variable, WeightAverage]:
    weight = keras.Variable(np.float32([1.0, -2.0]))
    return weight, WeightAverage(tf.distribute.get_strategy(), [weight], 0.75)


def read_average(average: WeightAverage) -> list[float]:
    return average.variables[0].numpy().tolist()


@pytest.mark.parametrize("is_compiled", [False, True])
def test_an_update_keeps_a_share_of_the_average(is_compiled: bool) -> None:
    weight, average = create_average()
    update = tf.function(average.update) if is_compiled else average.update
    assert read_average(average) == [1.0, -2.0]
    weight.assign([5.0, 6.0])
    update(tf.constant(LATE))
    assert read_average(average) == [0.75 * 1 + 0.25 * 5, 0.75 * -2 + 0.25 * 6]
    update(tf.constant(LATE))
    assert read_average(average) == [0.75 * 2 + 0.25 * 5, 0.75 * 0 + 0.25 * 6]
    assert weight.numpy().tolist() == [5.0, 6.0]


@pytest.mark.parametrize(
    ("updates", "share"), [(0, 0.1), (1, 2 / 11), (8, 0.5), (25, 26 / 35), (26, 0.75), (10**9, 0.75)]
)
def test_early_updates_keep_less(updates: int, share: float) -> None:
    weight, average = create_average()
    weight.assign([0.0, 0.0])
    average.update(tf.constant(updates, tf.int64))
    np.testing.assert_allclose(read_average(average), [share, -2 * share], rtol=1e-6)


def test_a_short_training_forgets_its_first_weights() -> None:
    """After three epochs of 31 updates a constant decay of 0.995 would keep 63 % of them."""
    weight = keras.Variable(np.float32([1.0]))
    average = WeightAverage(tf.distribute.get_strategy(), [weight], 0.995)
    weight.assign([0.0])
    for updates in range(1, 94):
        average.update(tf.constant(updates, tf.int64))
    assert read_average(average)[0] < 1e-6


def test_the_average_replaces_the_weights_for_a_block() -> None:
    weight, average = create_average()
    weight.assign([5.0, 6.0])
    with average.swap_in():
        assert weight.numpy().tolist() == [1.0, -2.0]
    assert weight.numpy().tolist() == [5.0, 6.0]
    assert read_average(average) == [1.0, -2.0]
    with pytest.raises(ZeroDivisionError), average.swap_in():
        raise ZeroDivisionError
    assert weight.numpy().tolist() == [5.0, 6.0]


def test_a_restart_sets_the_average_to_the_weights() -> None:
    weight, average = create_average()
    weight.assign([5.0, 6.0])
    average.restart()
    assert read_average(average) == [5.0, 6.0]
    weight.assign([1.0, 1.0])
    assert read_average(average) == [5.0, 6.0]
