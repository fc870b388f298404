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
    loss: str = "cross_entropy",
    threshold: float | None = None,
) -> tf.Tensor:
    """Returns the training loss of each example; for a mixture, over the labels of both neighbours.

    Args:
        labels: True classes, int32 `[B]`.
        logits: Logits `[B, classes]`, or `[B, 1]` for class 1 of two.
        share: Share of the image itself in the mixture, float32 `[B]`; None if nothing is mixed.
        smoothing: Label smoothing (see `example_losses`).
        class_weights: Factor for each class, float32 `[classes]`; None for 1.
        loss: `cross_entropy`, or `bce` (see `binary_losses`).
        threshold: Target above which the target of `bce` becomes 1, and 0 below; None to keep it.

    Returns:
        float32 `[B]`, in nats.
    """
    if loss == "bce":
        return binary_losses(labels, logits, share, smoothing, class_weights, threshold)

    def compute_losses(labels: tf.Tensor) -> tf.Tensor:
        losses = example_losses(labels, logits, smoothing)
        if class_weights is None:
            return losses
        return losses * tf.gather(class_weights, labels)

    if share is None:
        return compute_losses(labels)
    return share * compute_losses(labels) + (1 - share) * compute_losses(swap_neighbours(labels))


def binary_losses(
    labels: tf.Tensor,
    logits: tf.Tensor,
    share: tf.Tensor | None = None,
    smoothing: float = 0.0,
    class_weights: np.ndarray | None = None,
    threshold: float | None = None,
) -> tf.Tensor:
    """Returns the binary cross-entropy of each example, the mean over all classes.

    Each class is predicted on its own, by the sigmoid of its logit, so that both labels of a mixture can be
    true (Wightman, Touvron and Jegou, "ResNet strikes back", 2021, section 2).

    Args:
        labels: True classes, int32 `[B]`.
        logits: Logits `[B, classes]`, or `[B, 1]` for class 1 of two, which is then the only one.
        share: Share of the image itself in the mixture, float32 `[B]`; None if nothing is mixed.
        smoothing: Share of the label that is spread evenly over all classes.
        class_weights: Factor for each class, float32 `[classes]`; that of a mixture is the mean of both.
        threshold: Target above which a target becomes 1, and 0 below; None to keep them.

    Returns:
        float32 `[B]`, in nats.
    """
    logits = tf.cast(logits, tf.float32)
    classes = max(2, logits.shape[-1])
    targets = _mix_labels(tf.one_hot(labels, classes), share)  # [B, classes]
    weights = None if class_weights is None else tf.linalg.matvec(targets, class_weights)
    targets = targets * (1 - smoothing) + smoothing / classes
    if threshold is not None:
        targets = tf.cast(targets > threshold, tf.float32)
    if logits.shape[-1] == 1:
        targets = targets[:, 1:]
    losses = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
    means = tf.reduce_mean(losses, axis=-1)
    return means if weights is None else means * weights


def _mix_labels(labels: tf.Tensor, share: tf.Tensor | None) -> tf.Tensor:
    """Mixes labels `[B, classes]` with those of the neighbours, as their images are mixed."""
    if share is None:
        return labels
    return share[:, None] * labels + (1 - share[:, None]) * swap_neighbours(labels)


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
