"""The step: forward, backward, one sum over all replicas, one update. And the forward pass that evaluates.

K updates run in one call of a compiled graph; Python only starts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipelines.augment.apply import augmented, neighbours
from pipelines.records import Batch
from pipelines.spec import AugmentSpec
from service.training.average import WeightAverage
from service.training.loss_scale import LossScale
from service.training.losses import predicted_classes, training_losses, true_ranks

Attach = Callable[[Batch], Batch]
# AutoGraph rewrites every function that a graph calls, which takes as long as tracing; only `_train` has loops it is needed for.
as_written = tf.autograph.experimental.do_not_convert
TOTALS = 4  # sums over examples: loss, right answers, answers among the five most probable, weight


def as_it_is(batch: Batch) -> Batch:
    """The batch that has its images already."""
    return batch


@dataclass(frozen=True)
class StepOptions:
    """What a step does besides learning.

    Attributes:
        xla: Whether forward and backward are compiled, and where there is one replica the mean of the gradients.
        xla_update: Whether the update is, where there is one replica; XLA cannot sum over several.
        augment: The size of augmented images, and what fills their edges and erased boxes; the rest comes with the batch.
        attach: Adds to a batch what the net takes: images (see `pipelines.input.batches.Batches.attach`), or features.
        accumulate: Batches whose gradients make one update.
        clip_norm: Largest global norm of the gradient, after the sum over replicas; None for no limit.
        smoothing: Of the labels (see `example_losses`).
        class_weights: Factor on the loss for each class.
        ema: Decay of the moving average of the weights, per update; None for none.
        scaled: Whether the loss is scaled, as float16 needs it.
    """

    xla: bool = False
    xla_update: bool = True
    augment: AugmentSpec | None = None
    attach: Attach = as_it_is
    accumulate: int = 1
    clip_norm: float | None = None
    smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    ema: float | None = None
    scaled: bool = False


@dataclass(frozen=True)
class StepResult:
    """What some updates in one call came to.

    Attributes:
        waited: Seconds spent waiting for input.
        failed: The first update whose gradient was not finite and that therefore changed nothing; None without one.
        skipped: How many such updates there were.
        rows: int64 `[B]` of every batch on this worker, where it came from Python.
    """

    waited: float
    failed: int | None = None
    skipped: int = 0
    rows: Sequence[np.ndarray] = ()


class Steps:
    """The compiled training of one model under one strategy. Build it inside the strategy's scope.

    Args:
        net: From images, or what `attach` makes of them, to logits.
        optimizer: Of the same scope.
        weights: The variables to train.
        rates: Learning rate of every update, float32 `[updates]`; the last one holds beyond the end.
        strategy: From `choose_strategy`.
        options: What a step does besides learning.

    Attributes:
        rates: The learning rates.
        average: Of the weights, where there is one.
        scale: Of the loss, where there is one.
    """

    def __init__(
        self,
        net: keras.Model,
        optimizer: keras.Optimizer,
        weights: list[keras.Variable],
        rates: np.ndarray,
        strategy: tf.distribute.Strategy,
        options: StepOptions = StepOptions(),
    ) -> None:
        self._net, self._optimizer, self._weights = net, optimizer, weights
        self._strategy, self._options = strategy, options
        self.rates = tf.constant(rates, tf.float32)
        optimizer.build(weights)
        # Gradients reach the optimizer summed; a second sum would scale them by the number of replicas.
        optimizer._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars
        self._forward_backward = (
            tf.function(self._gradients, jit_compile=True) if options.xla else self._gradients
        )
        alone = strategy.num_replicas_in_sync == 1
        self._mean = tf.function(self._reduced, jit_compile=True) if options.xla and alone else self._reduced
        self._learned = (
            tf.function(self._learn, jit_compile=True) if options.xla_update and alone else self._learn
        )
        self._totals = _summed(tf.zeros([TOTALS], tf.float64))
        self._sums = (
            [_summed(tf.zeros(v.shape)) for v in weights] + [_summed(tf.zeros([]))]
            if options.accumulate > 1
            else []
        )
        self._class_weights = (
            None if options.class_weights is None else tf.constant(options.class_weights, tf.float32)
        )
        self._seeds = [v for v in self._net.variables if "seed_generator_state" in v.path]
        self.average = WeightAverage(strategy, weights, options.ema) if options.ema else None
        self.scale = LossScale() if options.scaled else None

    @property
    def traces(self) -> int:
        """How often the training was traced: once, if all goes well."""
        return int(self._train.experimental_get_tracing_count())

    @property
    def variables(self) -> list[tf.Variable]:
        """What a checkpoint holds of the training beside model and optimizer."""
        return [
            *(self.average.variables if self.average else []),
            *(self.scale.variables if self.scale else []),
        ]

    def start(self, epoch: int, step: int, seed: int, sums: tuple[float, ...] = (0.0,) * TOTALS) -> None:
        """Takes up the training at some step of an epoch: dropout as it would be there, and the sums of the epoch so far."""
        self._start(
            *(tf.constant(number, tf.int64) for number in (epoch, step, seed)), tf.constant(sums, tf.float64)
        )

    def train(self, batches: Iterator[Batch], update: int, updates: int, micro: int = 1) -> StepResult:
        """Some updates, each from the gradients of `micro` batches.

        Args:
            batches: An iterator over a (distributed) `tf.data.Dataset`.
            update: How many updates of the run came before.
            updates: How many to do.
            micro: Batches of an update, at most `accumulate`.
        """
        waited, failed, skipped = self._train(
            batches, tf.constant(update, tf.int64), tf.constant(updates), tf.constant(micro)
        )
        return StepResult(float(waited), int(failed) if skipped else None, int(skipped))

    def train_on(self, batch: Batch, update: int, last: bool = True) -> StepResult:
        """One batch from Python, and the update if it is the last batch of one; the same result as `train`, more slowly."""
        good = bool(self._train_on(batch, tf.constant(update, tf.int64), last))
        rows = np.concatenate(
            [part.numpy() for part in self._strategy.experimental_local_results(batch["row"])]
        )
        return StepResult(0.0, None if good else update, int(not good), [rows])

    def totals(self) -> tuple[float, ...]:
        """Sums of the epoch so far over all replicas: loss, right answers, among the first five, weight. Every worker must ask."""
        return tuple(float(value) for value in tf.convert_to_tensor(self._totals).numpy())

    def local_totals(self) -> tuple[float, ...]:
        """The same over the replicas of this worker alone, which costs no talk with the others."""
        return tuple(
            sum(part.numpy() for part in self._strategy.experimental_local_results(self._totals)).tolist()
        )

    @tf.function
    def _train(
        self, batches: Iterator[Batch], update: tf.Tensor, updates: tf.Tensor, micro: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        # TensorFlow computes int32 in RAM: right for the loop's own numbers, while what comes of a step stays int64, on the device.
        waited, failed, skipped = (
            tf.constant(0.0, tf.float64),
            tf.constant(-1, tf.int64),
            tf.constant(0, tf.int64),
        )
        for done in tf.range(updates):
            now = update + tf.cast(done, tf.int64)
            if self._options.accumulate == 1:
                batch, waited = self._next(batches, waited)
                good = self._update(self._strategy.run(self._gradient_sums, (batch,)), self._rate(now))
            else:
                for _ in tf.range(micro):
                    batch, waited = self._next(batches, waited)
                    self._strategy.run(self._accumulate, (batch,))
                good = self._update(self._strategy.run(self._accumulated), self._rate(now))
            failed = tf.where(good | (skipped > 0), failed, now)
            skipped += tf.cast(~good, tf.int64)
        return waited, failed, skipped

    @tf.function
    def _train_on(self, batch: Batch, update: tf.Tensor, last: bool) -> tf.Tensor:
        if self._options.accumulate == 1:
            return self._update(self._strategy.run(self._gradient_sums, (batch,)), self._rate(update))
        self._strategy.run(self._accumulate, (batch,))
        return (
            self._update(self._strategy.run(self._accumulated), self._rate(update))
            if last
            else tf.constant(True)
        )

    @as_written
    def _next(self, batches: Iterator[Batch], waited: tf.Tensor) -> tuple[Batch, tf.Tensor]:
        """The next batch, and the seconds waited for batches, now with those that this one took."""
        asked = tf.timestamp()
        with tf.control_dependencies([asked]):
            batch = next(batches)
        with (
            tf.device("CPU:0"),
            tf.control_dependencies(self._strategy.experimental_local_results(batch["row"])),
        ):
            return batch, waited + (tf.timestamp() - asked)

    @as_written
    def _gradient_sums(self, batch: Batch) -> list[tf.Tensor]:
        """One replica's gradients, summed over its examples and scaled, and its weight."""
        images, share = augmented(
            self._options.attach(batch), self._options.augment
        )  # [B, H, W, C], [B] where images are mixed
        labels, weights = batch["label"], batch["weight"]
        scale = self.scale.factor() if self.scale else tf.constant(1.0)
        counted, sums = self._forward_backward(images, labels, weights, share, scale)
        self._totals.assign_add(counted)
        return sums

    def _gradients(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        weights: tf.Tensor,
        share: tf.Tensor | None,
        scale: tf.Tensor,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """What is counted of a batch, float64 `[TOTALS]`, and the gradients with the weight of its examples."""
        with tf.GradientTape() as tape:
            logits = self._net(images, training=True)
            losses = training_losses(labels, logits, share, self._options.smoothing, self._class_weights)
            loss = tf.reduce_sum(losses * weights)
            scaled = loss * scale
        gradients = tape.gradient(scaled, [v.value for v in self._weights])
        shown = labels if share is None else tf.where(share >= 0.5, labels, neighbours(labels))
        return _counted(loss, logits, shown, weights), [*gradients, tf.reduce_sum(weights)]

    @as_written
    def _accumulate(self, batch: Batch) -> None:
        for total, part in zip(self._sums, self._gradient_sums(batch), strict=True):
            total.assign_add(part)

    @as_written
    def _accumulated(self) -> list[tf.Tensor]:
        """What has been accumulated on a replica; starts it again from zero."""
        found = [tf.identity(total) for total in self._sums]
        for total, part in zip(self._sums, found, strict=True):
            with tf.control_dependencies([part]):
                total.assign(tf.zeros_like(part))
        return found

    @as_written
    def _rate(self, update: tf.Tensor) -> tf.Tensor:
        """The learning rate of an update."""
        return tf.gather(self.rates, tf.minimum(update, len(self.rates) - 1))

    @as_written
    def _update(self, sums: Any, rate: tf.Tensor) -> tf.Tensor:
        """Sums over the replicas, and updates everywhere alike, or nowhere where the gradient is not finite; returns which."""
        gradients, norm = self._strategy.run(self._mean, (sums,))
        good = tf.math.is_finite(self._strategy.experimental_local_results(norm)[0])

        tf.cond(good, lambda: self._learned(gradients, rate), lambda: None)
        return good if self.scale is None else self.scale.adapted(good)

    def _learn(self, gradients: Any, rate: tf.Tensor) -> None:
        """Updates the weights on every replica, and their average."""
        self._optimizer.learning_rate.assign(rate)
        self._strategy.run(lambda gradients: self._optimizer.apply(gradients, self._weights), (gradients,))
        if self.average:
            self.average.update(self._optimizer.iterations.value)

    def _reduced(self, sums: list[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
        """The mean gradient over the examples of all replicas, clipped, and its norm before that."""
        if self._strategy.num_replicas_in_sync > 1:
            sums = tf.distribute.get_replica_context().all_reduce("sum", sums)
        *gradients, weight = sums
        divisor = weight * self.scale.factor() if self.scale else weight
        gradients = [gradient / divisor for gradient in gradients]
        norm = tf.linalg.global_norm(gradients)
        if self._options.clip_norm:
            gradients = tf.clip_by_global_norm(gradients, self._options.clip_norm, use_norm=norm)[0]
        return gradients, norm

    @tf.function
    def _start(self, epoch: tf.Tensor, step: tf.Tensor, seed: tf.Tensor, sums: tf.Tensor) -> None:
        def per_replica() -> None:
            replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int64)
            for layer, state in enumerate(
                self._seeds
            ):  # a layer draws once a batch, and counts in the second number
                first = seed + 1_000_003 * layer + 7_919 * replica + 2_654_435_761 * epoch
                state.assign(tf.cast(tf.stack([first % 2**32, step]), state.dtype))
            self._totals.assign(tf.where(replica == 0, sums, tf.zeros_like(sums)))

        self._strategy.run(per_replica)


def _counted(loss: tf.Tensor, logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """What a batch adds to the sums of the epoch, float64 `[TOTALS]`; nothing where its loss is not finite."""
    hits = tf.reduce_sum(tf.cast(predicted_classes(logits) == labels, tf.float32) * weights)
    near = (
        tf.reduce_sum(tf.cast(true_ranks(labels, logits) < 5, tf.float32) * weights)
        if logits.shape[-1] > 5
        else hits
    )
    sums = tf.cast(tf.stack([loss, hits, near, tf.reduce_sum(weights)]), tf.float64)
    return tf.where(tf.math.is_finite(loss), sums, tf.zeros_like(sums))


def _summed(value: tf.Tensor) -> tf.Variable:
    """A variable that each replica has for itself, and that is the sum over all when it is read."""
    settings = {
        "synchronization": tf.VariableSynchronization.ON_READ,
        "aggregation": tf.VariableAggregation.SUM,
    }
    return tf.Variable(value, trainable=False, **settings)
