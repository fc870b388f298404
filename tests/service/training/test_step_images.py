"""Augmentation inside the training step, observed through its effect on the weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from step_samples import Batch, build_linear_steps, make_batch

from pipelines.spec import AugmentSpec
from service.training.step import Steps

# Two images of labels 1 and 0, one without a neighbour, and padding.
IMAGES = [[2, 0], [0, 4], [6, 6], [9, 9]]


def get_kernel(model: keras.Model) -> np.ndarray:
    return np.asarray(model.get_weights()[0][:, 0])


def warp_pixels(augment: AugmentSpec | None, affine: list[list[float]]) -> np.ndarray:
    """The pixels that the step sees of an image of 10 and 30.

    In one update of rate 1 from zero, a weight learns half of its pixel.
    """
    model, steps = build_linear_steps(1.0, augment=augment)
    steps.train_batch(make_batch([[10, 30]], [1], affine=[affine]), 0)
    return 2 * get_kernel(model)


def test_images_are_warped() -> None:
    np.testing.assert_allclose(warp_pixels(None, [[-1, 0, 1], [0, 1, 0]]), [30, 10], rtol=1e-6)


def test_the_fill_of_the_spec_lies_beyond_the_edge() -> None:
    augment = AugmentSpec(shift=0.5, fill="constant", fill_value=70.0)
    np.testing.assert_allclose(warp_pixels(augment, [[1, 0, 0.5], [0, 1, 0]]), [30, 70], rtol=1e-6)


def train_mixed(steps: Steps, shares: list[float]) -> None:
    batch = make_batch(IMAGES, [1, 0, 1, 0], [1.0, 1.0, 1.0, 0.0], mix=[*shares, 1.0, 1.0])
    steps.train_batch(batch, 0)


@pytest.mark.parametrize("xla", [False, True])
def test_a_mixed_image_teaches_both_labels_by_their_shares(xla: bool) -> None:
    model, steps = build_linear_steps(1.0, xla=xla)
    model.set_weights([np.float32([[0.5], [-0.25]]), np.zeros(1, np.float32)])
    train_mixed(steps, [0.75, 0.25])
    # 3/4 of the first and 1/4 of the second image, in both rows; then the one without a neighbour
    images = np.array([[1.5, 1.0], [1.5, 1.0], [6.0, 6.0]])
    targets = np.array([0.75, 0.75, 1.0])  # share of label 1
    probabilities = 1 / (1 + np.exp(-images @ [0.5, -0.25]))
    gradient = ((probabilities - targets)[:, None] * images).sum(axis=0) / 3
    np.testing.assert_allclose(get_kernel(model), np.array([0.5, -0.25]) - gradient, rtol=1e-5)
    loss, _, _, weight = steps.read_totals()
    entropy = -(targets * np.log(probabilities) + (1 - targets) * np.log(1 - probabilities))
    assert loss / weight == pytest.approx(entropy.mean(), rel=1e-5)
    assert weight == 3


def test_a_mixed_image_counts_as_right_with_the_label_of_its_larger_part() -> None:
    model, steps = build_linear_steps(0.0)
    model.set_weights([np.zeros((2, 1), np.float32), np.float32([1.0])])  # always predicts class 1
    for shares, hits in (([0.75, 0.25], 3), ([0.25, 0.75], 1), ([0.75, 0.75], 2), ([0.5, 0.5], 2)):
        steps.start(1, 0, seed=5)
        train_mixed(steps, shares)
        assert steps.read_totals()[1] == hits


def test_the_labels_of_a_cutmix_are_shared_by_its_pixels() -> None:
    model, steps = build_linear_steps(1.0, size=4)
    model.set_weights([np.zeros((4, 1), np.float32), np.float32([2.0])])
    cut = [[0.0, 0.0, 1.0, 0.25], [0.0, 0.0, 0.0, 0.0]]
    steps.train_batch(make_batch([[8, 8, 8, 8], [4, 4, 4, 4]], [1, 0], [1.0, 0.0], cut=cut), 0)
    probability = 1 / (1 + np.exp(-2.0))
    expected = -(probability - 0.75) * np.array([4, 8, 8, 8])
    np.testing.assert_allclose(get_kernel(model), expected, rtol=1e-5)


def test_images_can_be_attached_from_device_memory() -> None:
    stored = tf.constant([[[[10.0], [30.0]]], [[[20.0], [40.0]]]])

    def attach(batch: Batch) -> Batch:
        return batch | {"image": tf.gather(stored, batch["row"])}

    model, steps = build_linear_steps(1.0, attach=attach)
    batch = make_batch([[0, 0]], [1]) | {"row": tf.constant([1], tf.int64)}
    del batch["image"]
    steps.train_batch(batch, 0)
    np.testing.assert_allclose(2 * get_kernel(model), [20, 40], rtol=1e-6)
