"""Computes losses, predicted classes and ranks of single examples from logits."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from pipelines.augment.apply import swap_neighbours


def example_losses(labels: tf.Tensor, logits: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """Returns the cross-entropy of each example.

    Args:
        labels: True classes, int32 `[B]`.
        logits: Logits `[B, classes]`, or `[B, 1]` for class 1 of two.
        smoothing: Share of the label, 0 to 1, that is spread evenly over all classes (Szegedy et al., 2016).

    Returns:
        float32 `[B]`, in nats.
    """
    logits = tf.cast(logits, tf.float32)
    if logits.shape[-1] == 1:
        target = tf.cast(labels, tf.float32) * (1 - smoothing) + smoothing / 2
        return tf.nn.sigmoid_cross_entropy_with_logits(target, logits[:, 0])
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if not smoothing:
        return loss
    # the mean of the cross-entropies with every class
    uniform_loss = tf.reduce_logsumexp(logits, axis=-1) - tf.reduce_mean(logits, axis=-1)
    return (1 - smoothing) * loss + smoothing * uniform_loss


def training_losses(
    labels: tf.Tensor,
    logits: tf.Tensor,
    share: tf.Tensor | None,
    smoothing: float = 0.0,
    class_weights: np.ndarray | None = None,
) -> tf.Tensor:
    """Returns the training loss of each example; for a mixture, over the labels of both neighbours.

    Args:
        labels: True classes, int32 `[B]`.
        logits: Logits `[B, classes]`, or `[B, 1]` for class 1 of two.
        share: Share of the image itself in the mixture, float32 `[B]`; None if nothing is mixed.
        smoothing: Label smoothing (see `example_losses`).
        class_weights: Factor for each class, float32 `[classes]`; None for 1.

    Returns:
        float32 `[B]`, in nats.
    """

    def compute_losses(labels: tf.Tensor) -> tf.Tensor:
        losses = example_losses(labels, logits, smoothing)
        if class_weights is None:
            return losses
        return losses * tf.gather(class_weights, labels)

    if share is None:
        return compute_losses(labels)
    return share * compute_losses(labels) + (1 - share) * compute_losses(swap_neighbours(labels))


def predict_classes(logits: tf.Tensor) -> tf.Tensor:
    """Returns the most probable class of each example, int32 `[B]`."""
    if logits.shape[-1] == 1:
        return tf.cast(logits[:, 0] > 0, tf.int32)
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


def true_ranks(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the rank of the true class of each example, int32 `[B]`; 0 for a correct prediction.

    Of equally probable classes, the one with the smaller number comes first. NaN logits count as wrong.
    """
    if logits.shape[-1] == 1:
        is_right = tf.where(labels == 1, logits[:, 0] > 0, logits[:, 0] <= 0)
        return tf.cast(~is_right, tf.int32)
    true_logits = tf.gather(logits, labels, batch_dims=1)[:, None]  # [B, 1]
    is_tied = (logits == true_logits) & (tf.range(logits.shape[-1]) >= labels[:, None])  # [B, classes]
    return tf.reduce_sum(tf.cast(~((logits < true_logits) | is_tied), tf.int32), axis=-1)
