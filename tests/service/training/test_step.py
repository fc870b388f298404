"""The step: exact on one device, the same on two, and blind to padding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines.errors import ConfigError
from pipelines.spec import AugmentSpec
from service.models import head
from service.training.step import StepOptions, Steps, example_losses, predicted_classes
from service.training.strategy import choose_strategy

SCRIPT = Path(__file__).with_name("equality_script.py")


def trained(devices: int, out: Path) -> dict[str, np.ndarray]:
    subprocess.run([sys.executable, str(SCRIPT), str(devices), str(out)], check=True, capture_output=True, cwd=SCRIPT.parents[3])
    with np.load(out) as file:
        return dict(file)


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("equality")
    return trained(1, folder / "one.npz"), trained(2, folder / "two.npz")


@pytest.mark.parametrize("run", ["plain", "augmented"])
def test_two_replicas_train_exactly_like_one(run: str, one_and_two: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]) -> None:
    one, two = ({name: value for name, value in result.items() if name.startswith(run)} for result in one_and_two)
    assert (one.pop(f"{run}/replicas"), two.pop(f"{run}/replicas")) == (1, 2)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_augmentation_made_a_difference(one_and_two: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]) -> None:
    assert not np.allclose(one_and_two[0]["plain/weight0"], one_and_two[0]["augmented/weight0"], atol=1e-3)


@pytest.mark.parametrize("run", ["plain", "augmented"])
def test_every_example_counts_once_and_padding_never(run: str, one_and_two: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]) -> None:
    for result in one_and_two:
        assert [result[f"{run}/{name}"][2] for name in ("totals0", "totals1", "totals2", "evaluated")] == [27] * 4


def linear_steps(learning_rate: float) -> tuple[keras.Model, Steps]:
    inputs = keras.Input((1, 1, 2))
    net = keras.Model(inputs, head(keras.layers.Flatten()(inputs), 2))
    net.set_weights([np.zeros((2, 1), np.float32), np.zeros(1, np.float32)])
    return net, Steps(net, keras.optimizers.SGD(learning_rate), tf.distribute.get_strategy())


def batch_of(images: list[list[int]], labels: list[int], weights: list[float]) -> dict[str, tf.Tensor]:
    pixels = tf.constant(np.array(images, np.uint8).reshape(-1, 1, 1, 2))
    return {"image": pixels, "label": tf.constant(labels), "weight": tf.constant(weights), "row": tf.range(len(labels), dtype=tf.int64)}


def test_one_update_is_the_mean_gradient_over_the_examples_that_count() -> None:
    net, steps = linear_steps(learning_rate=0.5)
    steps.train(batch_of([[2, 0], [0, 4], [9, 9]], [1, 0, 1], [1.0, 1.0, 0.0]))
    # at zero weights p = 1/2, so the gradient of an example is (1/2 - label) * x; the third example is padding
    kernel, bias = net.get_weights()
    np.testing.assert_allclose(kernel[:, 0], [-0.5 * (-0.5 * 2) / 2, -0.5 * (0.5 * 4) / 2], rtol=1e-6)
    np.testing.assert_allclose(bias, [0.0], atol=1e-7)
    totals = steps.take_totals()
    assert totals.weight == 2
    np.testing.assert_allclose(totals.mean_loss, np.log(2), rtol=1e-6)
    assert totals.accuracy == 0.5  # a logit of 0 says class 0: right for the second example alone
    assert steps.take_totals().weight == 0


def test_evaluation_changes_no_weight() -> None:
    net, steps = linear_steps(learning_rate=0.5)
    steps.evaluate(batch_of([[2, 0]], [1], [1.0]))
    assert not np.any(net.get_weights()[0])


def test_augmented_batch_is_warped() -> None:
    """A mirrored image must give the update of the mirror image."""
    inputs = keras.Input((1, 2, 1))
    net = keras.Model(inputs, head(keras.layers.Flatten()(inputs), 2))
    net.set_weights([np.zeros((2, 1), np.float32), np.zeros(1, np.float32)])
    steps = Steps(net, keras.optimizers.SGD(1.0), tf.distribute.get_strategy())
    batch = {
        "image": tf.constant([[[[10], [30]]]], tf.uint8),
        "label": tf.constant([1]),
        "weight": tf.constant([1.0]),
        "row": tf.constant([0], tf.int64),
        "affine": tf.constant([[[-1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]]),
    }
    steps.train(batch)
    np.testing.assert_allclose(net.get_weights()[0][:, 0], [15.0, 5.0], rtol=1e-6)


def test_the_spec_says_what_lies_beyond_the_edge() -> None:
    inputs = keras.Input((1, 2, 1))
    net = keras.Model(inputs, head(keras.layers.Flatten()(inputs), 2))
    net.set_weights([np.zeros((2, 1), np.float32), np.zeros(1, np.float32)])
    augment = AugmentSpec(shift=0.5, fill="constant", fill_value=70.0)
    steps = Steps(net, keras.optimizers.SGD(1.0), tf.distribute.get_strategy(), StepOptions(augment=augment))
    shift = tf.constant([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]])
    row = tf.constant([0], tf.int64)
    batch = {"image": tf.constant([[[[10], [30]]]], tf.uint8), "label": tf.constant([1]), "weight": tf.constant([1.0]), "row": row}
    steps.train(batch | {"affine": shift})
    np.testing.assert_allclose(net.get_weights()[0][:, 0], [15.0, 35.0], rtol=1e-6)


def mixed_batch(**parameters: object) -> dict[str, tf.Tensor]:
    """Two images of labels 1 and 0, then one that has no neighbour, and padding."""
    batch = batch_of([[2, 0], [0, 4], [6, 6], [9, 9]], [1, 0, 1, 0], [1.0, 1.0, 1.0, 0.0])
    return batch | {name: tf.constant(value, tf.float32) for name, value in parameters.items()}


@pytest.mark.parametrize("xla", [False, True])
def test_a_mixed_image_teaches_both_labels_by_their_shares(xla: bool) -> None:
    net, _ = linear_steps(0.0)
    net.set_weights([np.float32([[0.5], [-0.25]]), np.zeros(1, np.float32)])
    steps = Steps(net, keras.optimizers.SGD(1.0), tf.distribute.get_strategy(), StepOptions(xla=xla))
    steps.train(mixed_batch(mix=[0.75, 0.25, 1.0, 1.0]))
    images = np.array([[1.5, 1.0], [1.5, 1.0], [6.0, 6.0]])  # 3/4 of one and 1/4 of the other; the second 1/4 of itself
    targets = np.array([0.75, 0.75, 1.0])  # the share of label 1
    probabilities = 1 / (1 + np.exp(-images @ [0.5, -0.25]))
    expected = np.array([0.5, -0.25]) - ((probabilities - targets)[:, None] * images).sum(axis=0) / 3
    np.testing.assert_allclose(net.get_weights()[0][:, 0], expected, rtol=1e-5)
    totals = steps.take_totals()
    entropy = -(targets * np.log(probabilities) + (1 - targets) * np.log(1 - probabilities))
    np.testing.assert_allclose(totals.mean_loss, entropy.mean(), rtol=1e-5)
    assert totals.weight == 3


def test_a_mixed_image_is_right_with_the_label_of_its_larger_part() -> None:
    net, steps = linear_steps(0.0)
    net.set_weights([np.zeros((2, 1), np.float32), np.float32([1.0])])  # says class 1, always
    for shares, hits in (([0.75, 0.25], 3), ([0.25, 0.75], 1), ([0.75, 0.75], 2), ([0.5, 0.5], 2)):
        steps.train(mixed_batch(mix=[*shares, 1.0, 1.0]))
        assert steps.take_totals().hits == hits


def test_the_labels_of_a_cut_are_shared_by_its_pixels() -> None:
    inputs = keras.Input((1, 4, 1))
    net = keras.Model(inputs, head(keras.layers.Flatten()(inputs), 2))
    net.set_weights([np.zeros((4, 1), np.float32), np.float32([2.0])])
    steps = Steps(net, keras.optimizers.SGD(1.0), tf.distribute.get_strategy())
    images = tf.constant([[[[8], [8], [8], [8]]], [[[4], [4], [4], [4]]]], tf.uint8)
    batch = {"image": images, "label": tf.constant([1, 0]), "weight": tf.constant([1.0, 0.0]), "row": tf.range(2, dtype=tf.int64)}
    steps.train(batch | {"cut": tf.constant([[0.0, 0.0, 1.0, 0.25], [0.0, 0.0, 0.0, 0.0]])})
    probability = 1 / (1 + np.exp(-2.0))
    np.testing.assert_allclose(net.get_weights()[0][:, 0], -(probability - 0.75) * np.array([4, 8, 8, 8]), rtol=1e-5)


def test_losses_and_classes_of_both_kinds_of_head() -> None:
    one = tf.constant([[2.0], [-2.0]])
    np.testing.assert_allclose(example_losses(tf.constant([1, 1]), one), np.log1p(np.exp([-2.0, 2.0])), rtol=1e-6)
    assert predicted_classes(one).numpy().tolist() == [1, 0]
    three = tf.constant([[0.0, 1.0, 3.0], [5.0, 0.0, 0.0]])
    expected = [np.log(np.exp([0, 1, 3]).sum()) - 1, np.log(np.exp([5, 0, 0]).sum()) - 5]
    np.testing.assert_allclose(example_losses(tf.constant([1, 0]), three), expected, rtol=1e-5)
    assert predicted_classes(three).numpy().tolist() == [2, 0]


def test_dropout_repeats_for_an_epoch_and_differs_between_epochs() -> None:
    inputs = keras.Input((1, 1, 64))
    x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(inputs))
    net = keras.Model(inputs, head(x, 2))
    steps = Steps(net, keras.optimizers.SGD(0.0), tf.distribute.get_strategy())

    def drawn(epoch: int) -> list[float]:
        steps.start_epoch(epoch, seed=5)
        return np.asarray(keras.Model(inputs, x)(np.ones((1, 1, 1, 64)), training=True))[0].tolist()

    first, again, second = drawn(1), drawn(1), drawn(2)
    assert first == again
    assert first != second


def test_batch_that_does_not_divide_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [tf.config.LogicalDevice(f"/cpu:{i}", "CPU") for i in range(4)]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: devices if kind == "CPU" else [])
    with pytest.raises(ConfigError, match="use 28 or 32"):
        choose_strategy(30)


def test_evaluation_drops_nothing() -> None:
    inputs = keras.Input((1, 1, 2))
    net = keras.Model(inputs, head(keras.layers.Dropout(0.9)(keras.layers.Flatten()(inputs)), 2))
    net.get_layer("logits").set_weights([np.full((2, 1), 0.1, np.float32), np.full(1, 0.1, np.float32)])
    steps = Steps(net, keras.optimizers.SGD(0.1), tf.distribute.get_strategy())
    steps.evaluate(batch_of([[20, 10]] * 8, [1] * 8, [1.0] * 8))
    np.testing.assert_allclose(steps.take_totals().mean_loss, np.log1p(np.exp(-3.1)), rtol=1e-5)
