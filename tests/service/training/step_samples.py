"""A linear network that the tests of the step can follow with NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from service.models import head, logits_of
from service.training.step import StepOptions, Steps

Batch = dict[str, tf.Tensor]


def steps_for(
    net: keras.Model, optimizer: keras.Optimizer, rates: Sequence[float] = (0.0,), **options: Any
) -> Steps:
    """Steps of a network on one device, at the start of an epoch."""
    strategy = tf.distribute.get_strategy()
    steps = Steps(
        logits_of(net),
        optimizer,
        net.trainable_variables,
        np.float32(rates),
        strategy,
        StepOptions(**options),
    )
    steps.start(1, 0, seed=5)
    return steps


def linear_steps(
    *rates: float, size: int = 2, momentum: float = 0.0, **options: Any
) -> tuple[keras.Model, Steps]:
    """A network of one weight for each of some pixels, all zero at first."""
    inputs = keras.Input((1, size, 1))
    net = keras.Model(inputs, head(keras.layers.Flatten()(inputs), 2))
    net.set_weights([np.zeros((size, 1), np.float32), np.zeros(1, np.float32)])
    return net, steps_for(net, keras.optimizers.SGD(0.1, momentum=momentum), rates, **options)


def batch_of(
    images: Sequence[Sequence[float]],
    labels: Sequence[int],
    weights: Sequence[float] | None = None,
    **more: Any,
) -> Batch:
    """Images of one row of pixels."""
    pixels = tf.constant(np.array(images, np.float32)[:, None, :, None])
    weight = tf.constant(weights or [1.0] * len(labels))
    batch = {
        "image": pixels,
        "label": tf.constant(labels),
        "weight": weight,
        "row": tf.range(len(labels), dtype=tf.int64),
    }
    return batch | {name: tf.constant(value, tf.float32) for name, value in more.items()}


def some_batches(count: int, size: int = 2) -> list[Batch]:
    """Batches of four, in the last of which two rows are padding that would be seen if it counted."""
    draw = np.random.default_rng(3)
    found = [batch_of(draw.normal(size=(4, size)), draw.integers(0, 2, 4).tolist()) for _ in range(count)]
    found[-1] |= {"weight": tf.constant([1.0, 1.0, 0.0, 0.0])}
    return found


def iterator(batches: Sequence[Batch]) -> Iterator[Batch]:
    """What the compiled steps take."""
    columns = {name: tf.stack([batch[name] for batch in batches]) for name in batches[0]}
    return iter(tf.data.Dataset.from_tensor_slices(columns))


def learned(
    updates: Sequence[Sequence[Batch]],
    rates: Sequence[float],
    momentum: float = 0.0,
    clip: float = np.inf,
    ema: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression by gradient descent with momentum, in NumPy.

    Args:
        updates: The batches of each.
        rates: Of each.
        momentum: Of the velocity.
        clip: Largest norm of a gradient.
        ema: Decay of the average, after a start at which n updates keep (1 + n) / (10 + n).

    Returns:
        The weights, of which the last is the bias, and their average.
    """
    size = updates[0][0]["image"].shape[2] + 1
    weights, velocity, average = np.zeros(size), np.zeros(size), np.zeros(size)
    for made, (batches, rate) in enumerate(zip(updates, rates, strict=True), start=1):
        sums, total = np.zeros(size), 0.0
        for batch in batches:
            images = np.c_[batch["image"].numpy()[:, 0, :, 0], np.ones(len(batch["label"]))]
            wrong = (1 / (1 + np.exp(-images @ weights)) - batch["label"].numpy()) * batch["weight"].numpy()
            sums, total = sums + wrong @ images, total + batch["weight"].numpy().sum()
        gradient = sums / total
        gradient *= min(1.0, clip / np.linalg.norm(gradient))
        velocity = momentum * velocity - rate * gradient
        weights = weights + velocity
        share = min(ema, (1 + made) / (10 + made))
        average = share * average + (1 - share) * weights
    return weights, average
