"""One step: forward, backward, sum over the replicas, update. And the same forward for evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras
import tensorflow as tf

from pipelines.augment.apply import augmented, neighbours
from pipelines.records import Batch
from pipelines.spec import AugmentSpec
from service.models import logits_of


@dataclass(frozen=True)
class Totals:
    """Sums over the examples seen: what a mean over an epoch is made of."""

    loss: float
    hits: float
    weight: float

    @property
    def mean_loss(self) -> float:
        """Mean loss of an example, in nats."""
        return self.loss / self.weight

    @property
    def accuracy(self) -> float:
        """Share of the examples whose most probable class is the label, of mixed images that of the larger part."""
        return self.hits / self.weight


def example_losses(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of each example, float32 `[B]`, from labels int32 `[B]` and logits `[B, 1 or classes]`."""
    logits = tf.cast(logits, tf.float32)
    if logits.shape[-1] == 1:
        return tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(labels, tf.float32), logits[:, 0])
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def mixed_losses(labels: tf.Tensor, logits: tf.Tensor, share: tf.Tensor | None) -> tf.Tensor:
    """Cross-entropy of images mixed with their neighbours, float32 `[B]`: of both labels, by their shares in the image.

    Args:
        labels: int32 `[B]`.
        logits: `[B, 1 or classes]`.
        share: Of the image itself, float32 `[B]`; None where nothing is mixed.
    """
    own = example_losses(labels, logits)
    return own if share is None else share * own + (1 - share) * example_losses(neighbours(labels), logits)


def predicted_classes(logits: tf.Tensor) -> tf.Tensor:
    """The most probable class, int32 `[B]`."""
    if logits.shape[-1] == 1:
        return tf.cast(logits[:, 0] > 0, tf.int32)
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


Attach = Callable[[Batch], Batch]


def as_it_is(batch: Batch) -> Batch:
    """The batch that has its images already."""
    return batch


@dataclass(frozen=True)
class StepOptions:
    """What a step does besides learning.

    Attributes:
        xla: Whether forward and backward are compiled. Reducing and updating stay outside: XLA cannot.
        augment: What fills the edges and erased boxes of augmented images; the rest comes with the batch.
        attach: Adds the images to a batch of the training split (see `pipelines.input.batches.Batches.attach`).
        attach_held_out: The same for the split that is evaluated.
    """

    xla: bool = False
    augment: AugmentSpec | None = None
    attach: Attach = as_it_is
    attach_held_out: Attach = as_it_is


PLAIN = StepOptions()


class Steps:
    """The compiled steps of one model under one strategy. Build it inside the strategy's scope.

    Args:
        model: Ends in `logits` and `probabilities`.
        optimizer: Of the same scope.
        strategy: From `choose_strategy`.
        options: What a step does besides learning.
    """

    def __init__(
        self, model: keras.Model, optimizer: keras.Optimizer, strategy: tf.distribute.Strategy, options: StepOptions = PLAIN
    ) -> None:
        self._net, self._optimizer, self._strategy, self._options = logits_of(model), optimizer, strategy, options
        self._weights = self._net.trainable_variables
        optimizer.build(self._weights)
        # Gradients reach the optimizer summed; a second sum would scale them by the number of replicas.
        optimizer._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars
        self._gradients = tf.function(self._forward_backward, jit_compile=True) if options.xla else self._forward_backward
        self._totals = tf.Variable(
            tf.zeros([3], tf.float64),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )
        self._seeds = [v for v in self._net.variables if "seed_generator_state" in v.path]

    def start_epoch(self, epoch: int, seed: int) -> None:
        """Sets every dropout layer's seed from (seed, epoch, layer, replica): a restored run draws as the first one did."""
        self._seed_dropout(tf.constant(epoch, tf.int64), tf.constant(seed, tf.int64))

    def train(self, batch: Batch) -> None:
        """One update from one global batch (distributed where the strategy has several replicas)."""
        self._train(batch)

    def evaluate(self, batch: Batch) -> None:
        """Adds one global batch to the totals without learning from it."""
        self._evaluate(batch)

    def take_totals(self) -> Totals:
        """The sums since the last call, over all replicas; starts them again from zero."""
        loss, hits, weight = (float(value) for value in tf.convert_to_tensor(self._totals))
        self._totals.assign(tf.zeros([3], tf.float64))
        return Totals(loss, hits, weight)

    def _forward_backward(
        self, images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, share: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            logits = self._net(images, training=True)
            loss = tf.reduce_sum(mixed_losses(labels, logits, share) * weights)
        return logits, loss, tape.gradient(loss, [v.value for v in self._weights])

    @tf.function(reduce_retracing=True)
    def _train(self, batch: Batch) -> None:
        self._strategy.run(self._train_replica, (batch,))

    def _train_replica(self, batch: Batch) -> None:
        images, share = augmented(self._options.attach(batch), self._options.augment)  # [B, H, W, C], [B] where images are mixed
        labels, weights = batch["label"], batch["weight"]
        logits, loss, gradients = self._gradients(images, labels, weights, share)
        self._add(loss, logits, labels if share is None else tf.where(share >= 0.5, labels, neighbours(labels)), weights)
        weight = tf.reduce_sum(weights)
        if self._strategy.num_replicas_in_sync > 1:
            weight, *gradients = tf.distribute.get_replica_context().all_reduce("sum", [weight, *gradients])
        self._optimizer.apply([g / weight for g in gradients], self._weights)

    @tf.function(reduce_retracing=True)
    def _evaluate(self, batch: Batch) -> None:
        self._strategy.run(self._evaluate_replica, (batch,))

    def _evaluate_replica(self, batch: Batch) -> None:
        logits = self._net(tf.cast(self._options.attach_held_out(batch)["image"], tf.float32), training=False)
        labels, weights = batch["label"], batch["weight"]
        self._add(tf.reduce_sum(example_losses(labels, logits) * weights), logits, labels, weights)

    def _add(self, loss: tf.Tensor, logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> None:
        hits = tf.reduce_sum(tf.cast(predicted_classes(logits) == labels, tf.float32) * weights)
        self._totals.assign_add(tf.cast(tf.stack([loss, hits, tf.reduce_sum(weights)]), tf.float64))

    @tf.function
    def _seed_dropout(self, epoch: tf.Tensor, seed: tf.Tensor) -> None:
        def per_replica() -> None:
            replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int64)
            for layer, state in enumerate(self._seeds):
                numbers = tf.stack([seed + 1_000_003 * layer + 7_919 * replica, epoch * 2**20])  # a layer draws once a step
                state.assign(tf.cast(numbers % 2**32, state.dtype))

        self._strategy.run(per_replica)
