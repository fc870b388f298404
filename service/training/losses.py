"""Losses of examples, and what is counted of answers, from logits."""

from __future__ import annotations

import tensorflow as tf

from pipelines.augment.apply import neighbours


def example_losses(labels: tf.Tensor, logits: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """Cross-entropy of each example.

    Args:
        labels: int32 `[B]`.
        logits: `[B, 1 or classes]`.
        smoothing: Share of the label that is spread evenly over all classes (Szegedy et al., 2016), 0 to 1.

    Returns:
        float32 `[B]`, in nats.
    """
    logits = tf.cast(logits, tf.float32)
    if logits.shape[-1] == 1:
        target = tf.cast(labels, tf.float32) * (1 - smoothing) + smoothing / 2
        return tf.nn.sigmoid_cross_entropy_with_logits(target, logits[:, 0])
    own = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if not smoothing:
        return own
    even = tf.reduce_logsumexp(logits, axis=-1) - tf.reduce_mean(
        logits, axis=-1
    )  # mean cross-entropy over the classes
    return (1 - smoothing) * own + smoothing * even


def training_losses(
    labels: tf.Tensor,
    logits: tf.Tensor,
    share: tf.Tensor | None,
    smoothing: float = 0.0,
    class_weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """What each example adds to the loss in training: of both labels, where it is mixed with its neighbour.

    Args:
        labels: int32 `[B]`.
        logits: `[B, 1 or classes]`.
        share: Of the image itself in the mixture, float32 `[B]`; None where nothing is mixed.
        smoothing: See `example_losses`.
        class_weights: Factor for each class, float32 `[classes]`; None for 1.

    Returns:
        float32 `[B]`, in nats.
    """

    def of(labels: tf.Tensor) -> tf.Tensor:
        losses = example_losses(labels, logits, smoothing)
        return losses if class_weights is None else losses * tf.gather(class_weights, labels)

    return of(labels) if share is None else share * of(labels) + (1 - share) * of(neighbours(labels))


def predicted_classes(logits: tf.Tensor) -> tf.Tensor:
    """The most probable class, int32 `[B]`."""
    if logits.shape[-1] == 1:
        return tf.cast(logits[:, 0] > 0, tf.int32)
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


def true_ranks(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """How many classes are taken for more probable than the true one, or as probable with a smaller number: int32 `[B]`, 0 if right.

    An answer that is not a number is wrong, whatever the true class.
    """
    if logits.shape[-1] == 1:
        return tf.cast(~tf.where(labels == 1, logits[:, 0] > 0, logits[:, 0] <= 0), tf.int32)
    of_truth = tf.gather(logits, labels, batch_dims=1)[:, None]  # [B, 1]
    tied = (logits == of_truth) & (tf.range(logits.shape[-1]) >= labels[:, None])
    return tf.reduce_sum(tf.cast(~((logits < of_truth) | tied), tf.int32), axis=-1)
