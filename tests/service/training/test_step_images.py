"""What the step does to images before it learns from them, by its effect on the weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from step_samples import Batch, batch_of, linear_steps

from pipelines.spec import AugmentSpec
from service.training.step import Steps

THIRD = [
    [2, 0],
    [0, 4],
    [6, 6],
    [9, 9],
]  # two images of labels 1 and 0, then one that has no neighbour, and padding


def kernel(net: keras.Model) -> np.ndarray:
    return np.asarray(net.get_weights()[0][:, 0])


def warped(fill: AugmentSpec | None, affine: list[list[float]]) -> np.ndarray:
    """What a weight learns from an image of pixels 10 and 30 in one step of rate 1, times two: the pixel."""
    net, steps = linear_steps(1.0, augment=fill)
    steps.train_on(batch_of([[10, 30]], [1], affine=[affine]), 0)
    return 2 * kernel(net)


def test_images_are_warped() -> None:
    np.testing.assert_allclose(warped(None, [[-1, 0, 1], [0, 1, 0]]), [30, 10], rtol=1e-6)


def test_the_spec_says_what_lies_beyond_the_edge() -> None:
    augment = AugmentSpec(shift=0.5, fill="constant", fill_value=70.0)
    np.testing.assert_allclose(warped(augment, [[1, 0, 0.5], [0, 1, 0]]), [30, 70], rtol=1e-6)


def mixed(steps: Steps, shares: list[float], update: int = 0) -> None:
    steps.train_on(batch_of(THIRD, [1, 0, 1, 0], [1.0, 1.0, 1.0, 0.0], mix=[*shares, 1.0, 1.0]), update)


@pytest.mark.parametrize("xla", [False, True])
def test_a_mixed_image_teaches_both_labels_by_their_shares(xla: bool) -> None:
    net, steps = linear_steps(1.0, xla=xla)
    net.set_weights([np.float32([[0.5], [-0.25]]), np.zeros(1, np.float32)])
    mixed(steps, [0.75, 0.25])
    images = np.array(
        [[1.5, 1.0], [1.5, 1.0], [6.0, 6.0]]
    )  # 3/4 of one and 1/4 of the other; the second 1/4 of itself
    targets = np.array([0.75, 0.75, 1.0])  # the share of label 1
    probabilities = 1 / (1 + np.exp(-images @ [0.5, -0.25]))
    expected = np.array([0.5, -0.25]) - ((probabilities - targets)[:, None] * images).sum(axis=0) / 3
    np.testing.assert_allclose(kernel(net), expected, rtol=1e-5)
    loss, _, _, weight = steps.totals()
    entropy = -(targets * np.log(probabilities) + (1 - targets) * np.log(1 - probabilities))
    assert loss / weight == pytest.approx(entropy.mean(), rel=1e-5)
    assert weight == 3


def test_a_mixed_image_is_right_with_the_label_of_its_larger_part() -> None:
    net, steps = linear_steps(0.0)
    net.set_weights([np.zeros((2, 1), np.float32), np.float32([1.0])])  # says class 1, always
    for shares, hits in (([0.75, 0.25], 3), ([0.25, 0.75], 1), ([0.75, 0.75], 2), ([0.5, 0.5], 2)):
        steps.start(1, 0, seed=5)
        mixed(steps, shares)
        assert steps.totals()[1] == hits


def test_the_labels_of_a_cut_are_shared_by_its_pixels() -> None:
    net, steps = linear_steps(1.0, size=4)
    net.set_weights([np.zeros((4, 1), np.float32), np.float32([2.0])])
    cut = [[0.0, 0.0, 1.0, 0.25], [0.0, 0.0, 0.0, 0.0]]
    steps.train_on(batch_of([[8, 8, 8, 8], [4, 4, 4, 4]], [1, 0], [1.0, 0.0], cut=cut), 0)
    probability = 1 / (1 + np.exp(-2.0))
    np.testing.assert_allclose(kernel(net), -(probability - 0.75) * np.array([4, 8, 8, 8]), rtol=1e-5)


def test_images_may_lie_on_the_device() -> None:
    stored = tf.constant([[[[10.0], [30.0]]], [[[20.0], [40.0]]]])

    def attach(batch: Batch) -> Batch:
        return batch | {"image": tf.gather(stored, batch["row"])}

    net, steps = linear_steps(1.0, attach=attach)
    batch = batch_of([[0, 0]], [1]) | {"row": tf.constant([1], tf.int64)}
    del batch["image"]
    steps.train_on(batch, 0)
    np.testing.assert_allclose(2 * kernel(net), [20, 40], rtol=1e-6)
