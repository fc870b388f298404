"""A linear network whose training steps the tests can follow with NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from service.models.layers import add_head, build_logits_model
from service.training.step import StepOptions, Steps

Batch = dict[str, tf.Tensor]


def build_steps(
    model: keras.Model, optimizer: keras.Optimizer, rates: Sequence[float] = (0.0,), **options: Any
) -> Steps:
    """Steps of a model on one device, at the start of an epoch."""
    steps = Steps(
        build_logits_model(model),
        optimizer,
        model.trainable_variables,
        np.float32(rates),
        tf.distribute.get_strategy(),
        StepOptions(**options),
    )
    steps.start(1, 0, seed=5)
    return steps


def build_linear_steps(
    *rates: float, size: int = 2, momentum: float = 0.0, **options: Any
) -> tuple[keras.Model, Steps]:
    """Steps of a model with one weight per pixel, all of them zero at first."""
    inputs = keras.Input((1, size, 1))
    model = keras.Model(inputs, add_head(keras.layers.Flatten()(inputs), 2))
    model.set_weights([np.zeros((size, 1), np.float32), np.zeros(1, np.float32)])
    optimizer = keras.optimizers.SGD(0.1, momentum=momentum)
    return model, build_steps(model, optimizer, rates, **options)


def make_batch(
    images: Sequence[Sequence[float]],
    labels: Sequence[int],
    weights: Sequence[float] | None = None,
    **more: Any,
) -> Batch:
    """A batch of images that are one row of pixels each."""
    pixels = np.array(images, np.float32)[:, None, :, None]  # [B, 1, size, 1]
    batch = {
        "image": tf.constant(pixels),
        "label": tf.constant(labels),
        "weight": tf.constant(weights or [1.0] * len(labels)),
        "row": tf.range(len(labels), dtype=tf.int64),
    }
    return batch | {name: tf.constant(value, tf.float32) for name, value in more.items()}


def make_batches(count: int, size: int = 2) -> list[Batch]:
    """Batches of four rows with consecutive numbers.

    In the last batch two rows are padding, which would be noticed if it counted.
    """
    rng = np.random.default_rng(3)
    batches = []
    for number in range(count):
        batch = make_batch(rng.normal(size=(4, size)), rng.integers(0, 2, 4).tolist())
        batches.append(batch | {"row": batch["row"] + 4 * number})
    batches[-1] |= {"weight": tf.constant([1.0, 1.0, 0.0, 0.0])}
    return batches


def iterate(batches: Sequence[Batch]) -> Iterator[Batch]:
    """The kind of iterator that the compiled steps take."""
    columns = {name: tf.stack([batch[name] for batch in batches]) for name in batches[0]}
    return iter(tf.data.Dataset.from_tensor_slices(columns))


def fit_logistic_regression(
    updates: Sequence[Sequence[Batch]],
    rates: Sequence[float],
    momentum: float = 0.0,
    clip_norm: float = np.inf,
    ema_decay: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression by gradient descent with momentum, in NumPy.

    Args:
        updates: Batches of each update.
        rates: Learning rate of each update.
        momentum: Decay of the velocity.
        clip_norm: Maximum norm of a gradient.
        ema_decay: Decay of the average; after n updates at most (1 + n) / (10 + n).

    Returns:
        The weights, of which the last is the bias, and their average.
    """
    size = updates[0][0]["image"].shape[2] + 1
    weights = np.zeros(size)
    velocity = np.zeros(size)
    average = np.zeros(size)
    for count, (batches, rate) in enumerate(zip(updates, rates, strict=True), start=1):
        gradient = _mean_gradient(batches, weights)
        gradient *= min(1.0, clip_norm / np.linalg.norm(gradient))
        velocity = momentum * velocity - rate * gradient
        weights = weights + velocity
        decay = min(ema_decay, (1 + count) / (10 + count))
        average = decay * average + (1 - decay) * weights
    return weights, average


def _mean_gradient(batches: Sequence[Batch], weights: np.ndarray) -> np.ndarray:
    """The gradient of the cross-entropy, averaged over the examples of some batches by their weight."""
    gradient = np.zeros_like(weights)
    total = 0.0
    for batch in batches:
        images = np.c_[batch["image"].numpy()[:, 0, :, 0], np.ones(len(batch["label"]))]
        probabilities = 1 / (1 + np.exp(-images @ weights))
        errors = (probabilities - batch["label"].numpy()) * batch["weight"].numpy()
        gradient += errors @ images
        total += batch["weight"].numpy().sum()
    return gradient / total
