"""The compiled training step: forward, backward, one sum over all replicas, one optimizer update.

Several updates run in one call of the compiled graph, which reduces the overhead of Python. XLA compiles what
precedes the sum over the replicas, and what follows it, to one program each per replica.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.config import is_op_determinism_enabled

from pipelines.augment.apply import apply_augmentations, swap_neighbours
from pipelines.records import Batch
from pipelines.spec import AugmentSpec
from service.training.average import WeightAverage
from service.training.layer_norms import GradientNorms
from service.training.loss_scale import LossScale
from service.training.losses import predict_classes, training_losses, true_ranks
from service.training.optimizers import apply_gradients
from service.training.packing import Packing
from service.training.strategy import find_replica_copy

Attach = Callable[[Batch], Batch]
# AutoGraph rewrites every function that a graph calls, which takes as long as tracing it. Only `_run_updates`
# has loops that need the rewriting.
no_autograph = tf.autograph.experimental.do_not_convert
# Without it, TensorFlow would join the buffers of a large model to one, by another copy.
_KEEP_BUFFERS = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=1)
TOTALS = 4  # sums over the examples of an epoch: loss, top-1 hits, top-5 hits, weight


def attach_nothing(batch: Batch) -> Batch:
    """Returns the batch unchanged, for batches that already contain their images."""
    return batch


@dataclass(frozen=True)
class StepOptions:
    """Options of the training step.

    Attributes:
        xla: Whether XLA compiles forward and backward pass.
        xla_update: Whether XLA compiles the optimizer update.
        augment: Size of augmented images, and fill of their edges and erased boxes. The random parameters are
            part of the batch.
        attach: Adds the network's input to a batch: images (see `pipelines.input.batches.Batches.attach`) or
            features of frozen layers.
        accumulate: Number of batches whose gradients are summed for one update.
        clip_norm: Maximum global norm of the gradient, after the sum over replicas; None for no limit.
        label_smoothing: Share of each label spread over all classes (see `example_losses`).
        class_weights: Factor on the loss for each class.
        loss: `cross_entropy` or `bce`.
        bce_threshold: Target above which a target of `bce` becomes 1; None to keep the targets.
        l2: Factor of the L2 penalty (see `OptimizerSpec.l2`).
        ema_decay: Decay of the moving average of the weights, per update; None for no average.
        scale_loss: Whether to scale the loss, as required for float16.
        record_rows: Whether results contain the row numbers of the trained batches.
    """

    xla: bool = False
    xla_update: bool = True
    augment: AugmentSpec | None = None
    attach: Attach = attach_nothing
    accumulate: int = 1
    clip_norm: float | None = None
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    loss: str = "cross_entropy"
    bce_threshold: float | None = None
    l2: float = 0.0
    ema_decay: float | None = None
    scale_loss: bool = False
    record_rows: bool = False


@dataclass(frozen=True)
class StepResult:
    """Outcome of the updates of one call.

    Attributes:
        wait_seconds: Seconds spent waiting for input.
        first_skipped: The first update that was skipped because its gradient was not finite; None if all were
            finite.
        skipped: Number of such updates.
        rows: int64 `[B]` for each batch of this worker; empty if rows are not recorded.
    """

    wait_seconds: float
    first_skipped: int | None = None
    skipped: int = 0
    rows: Sequence[np.ndarray] = ()


@dataclass(frozen=True)
class PendingStep:
    """A batch that the devices may still be training on.

    Attributes:
        update: Number of updates of the run that came before.
        flags: For each replica of this worker, bool tensor `[]`: whether training can continue.
        rows: For each replica of this worker, int64 tensor `[B]`; empty if rows are not recorded.
    """

    update: int
    flags: tuple[tf.Tensor, ...]
    rows: tuple[tf.Tensor, ...]

    def wait(self) -> StepResult:
        """Waits for all replicas: none of them reads the batch any longer."""
        flags = [bool(flag) for flag in self.flags]
        is_finite = all(flags)
        rows = [np.concatenate([part.numpy() for part in self.rows])] if self.rows else []
        return StepResult(0.0, None if is_finite else self.update, int(not is_finite), rows)


class Steps:
    """The compiled training of one model under one strategy. Build it inside the strategy's scope.

    Args:
        network: Model from images, or from what `attach` adds, to logits.
        optimizer: Optimizer built in the same scope.
        weights: The variables to train.
        rates: Learning rate of every update, float32 `[updates]`; later updates use the last one.
        strategy: Strategy from `choose_strategy`.
        options: Options of the step.

    Attributes:
        rates: Learning rate of every update, float32 `[updates]`.
        weights: The variables that are trained.
        gradient_norms: Sums of the squared gradients of the epoch so far.
        average: Moving average of the weights, or None.
        loss_scale: Scale of the loss, or None.
    """

    def __init__(
        self,
        network: keras.Model,
        optimizer: keras.Optimizer,
        weights: list[keras.Variable],
        rates: np.ndarray,
        strategy: tf.distribute.Strategy,
        options: StepOptions = StepOptions(),
    ) -> None:
        self._network = network
        self._optimizer = optimizer
        self.weights = weights
        self._strategy = strategy
        self._options = options
        self.rates = tf.constant(rates, tf.float32)

        optimizer.build(weights)

        self._compiled_forward_backward = _compile(self._forward_backward, options.xla)
        self._compiled_update = _compile(self._apply_sums, options.xla_update)

        self._totals = _sum_variable(tf.zeros([TOTALS], tf.float64))
        shapes = [*(v.shape for v in weights), ()]  # the last sum is the weight of the examples
        # On a single replica nothing is summed, and packing would only be a copy.
        self._packing = Packing(shapes) if strategy.num_replicas_in_sync > 1 else None
        self._accumulated: list[tf.Variable] = []
        if options.accumulate > 1:
            sum_shapes = [(size,) for size in self._packing.sizes] if self._packing else shapes
            self._accumulated = [_sum_variable(tf.zeros(shape)) for shape in sum_shapes]
        self._class_weights: np.ndarray | None = None  # a constant of each compiled program
        if options.class_weights is not None:
            self._class_weights = np.float32(options.class_weights)
        self._dropout_seeds = [v for v in network.variables if "seed_generator_state" in v.path]
        self.gradient_norms = GradientNorms(strategy, len(weights))
        self.average = WeightAverage(strategy, weights, options.ema_decay) if options.ema_decay else None
        self.loss_scale = LossScale() if options.scale_loss else None

    @property
    def trace_count(self) -> int:
        """Number of times that the training was traced; above 1 if an argument changes between calls."""
        return int(self._run_updates.experimental_get_tracing_count())

    @property
    def variables(self) -> list[tf.Variable]:
        """Variables of the training itself that a checkpoint holds next to those of model and optimizer."""
        variables = []
        if self.average:
            variables += self.average.variables
        if self.loss_scale:
            variables += self.loss_scale.variables
        return variables

    def start(
        self,
        epoch: int,
        step: int,
        seed: int,
        sums: tuple[float, ...] = (0.0,) * TOTALS,
        squared_gradients: tuple[float, ...] = (),
    ) -> None:
        """Sets the state of a step of an epoch: the seeds of dropout, and the sums of the epoch so far.

        Args:
            epoch: The epoch to train, from 1.
            step: Batches of the epoch that are already done.
            seed: Seed of the run.
            sums: Sums of the epoch so far (see `read_totals`).
            squared_gradients: Sums of the epoch so far (see `GradientNorms.read`); empty for zeros.
        """
        self.gradient_norms.set(squared_gradients)
        numbers = [tf.constant(number, tf.int64) for number in (epoch, step, seed)]
        self._set_state(*numbers, tf.constant(sums, tf.float64))

    def train(self, batches: Iterator[Batch], update: int, updates: int, micro: int = 1) -> StepResult:
        """Runs some updates in one call of the compiled graph, each on the gradients of `micro` batches.

        Args:
            batches: Iterator over a (distributed) `tf.data.Dataset`.
            update: Number of updates of the run that came before.
            updates: Number of updates to run.
            micro: Batches of each update, at most `accumulate`.
        """
        wait_seconds, first_skipped, skipped, rows = self._run_updates(
            batches, tf.constant(update, tf.int64), tf.constant(updates), tf.constant(micro)
        )
        return StepResult(
            float(wait_seconds), int(first_skipped) if skipped else None, int(skipped), list(rows.numpy())
        )

    def train_batch(self, batch: Batch, update: int, is_last: bool = True) -> StepResult:
        """Trains on one batch that comes from Python; slower than `train`, with the same result.

        Args:
            batch: The batch, as `train` would take it from its iterator.
            update: Number of updates of the run that came before.
            is_last: Whether this is the last batch of its update, which is then applied.
        """
        return self.start_batch(batch, update, is_last).wait()

    def start_batch(self, batch: Batch, update: int, is_last: bool = True) -> PendingStep:
        """Does what `train_batch` does, without waiting for devices that compute asynchronously.

        Args:
            batch: The batch, as `train` would take it from its iterator.
            update: Number of updates of the run that came before.
            is_last: Whether this is the last batch of its update, which is then applied.
        """
        flags = self._run_batch(batch, tf.constant(update, tf.int64), is_last)
        rows = self._local(batch["row"]) if self._options.record_rows else ()
        return PendingStep(update, tuple(flags), tuple(rows))

    def read_totals(self) -> tuple[float, ...]:
        """Returns the sums of the epoch so far over all replicas. A collective: every worker must call it.

        Returns:
            Loss in nats, top-1 hits, top-5 hits, and the weight of the examples.
        """
        return tuple(float(value) for value in tf.convert_to_tensor(self._totals).numpy())

    def read_local_totals(self) -> tuple[float, ...]:
        """Returns the same sums over the replicas of this worker alone, without communication."""
        parts = [part.numpy() for part in self._local(self._totals)]
        return tuple(sum(parts).tolist())

    @tf.function
    def _run_updates(
        self, batches: Iterator[Batch], update: tf.Tensor, updates: tf.Tensor, micro: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        # TensorFlow keeps int32 in host memory, which suits the counters of the loop. Results of a step are
        # int64, on the device, so that the loop never waits for them.
        wait_seconds = tf.constant(0.0, tf.float64)
        first_skipped = tf.constant(-1, tf.int64)
        skipped = tf.constant(0, tf.int64)
        rows = self._make_row_array(updates * micro)

        for done in tf.range(updates):
            current = update + tf.cast(done, tf.int64)

            if self._options.accumulate == 1:
                batch, wait_seconds = self._next_batch(batches, wait_seconds)
                rows = self._record_rows(rows, done, batch)
                sums = self._strategy.run(self._sum_gradients, (batch,))
            else:
                for part in tf.range(micro):
                    batch, wait_seconds = self._next_batch(batches, wait_seconds)
                    rows = self._record_rows(rows, done * micro + part, batch)
                    self._strategy.run(self._accumulate, (batch,))
                sums = self._strategy.run(self._take_accumulated)

            is_finite = self._update(sums, self._learning_rate(current))[0]
            first_skipped = tf.where(is_finite | (skipped > 0), first_skipped, current)
            skipped += tf.cast(~is_finite, tf.int64)

        return wait_seconds, first_skipped, skipped, rows.stack()

    @tf.function(autograph=False)
    def _run_batch(self, batch: Batch, update: tf.Tensor, is_last: bool) -> tuple[tf.Tensor, ...]:
        """Returns for each replica of this worker whether training can continue."""
        if self._options.accumulate == 1:
            sums = self._strategy.run(self._sum_gradients, (batch,))
            return self._update(sums, self._learning_rate(update))
        has_weight = self._strategy.run(self._accumulate, (batch,))
        if not is_last:
            return self._local(has_weight)
        sums = self._strategy.run(self._take_accumulated)
        return self._update(sums, self._learning_rate(update))

    @no_autograph
    def _next_batch(self, batches: Iterator[Batch], wait_seconds: tf.Tensor) -> tuple[Batch, tf.Tensor]:
        """Returns the next batch, and the seconds waited for batches so far, this one included."""
        began = _read_clock()
        with tf.control_dependencies([began]):
            batch = next(batches)
        # On the CPU, like the clock: on a GPU, the sum would otherwise be an operation of the device.
        with tf.device("CPU:0"), tf.control_dependencies(self._local(batch["row"])):
            return batch, wait_seconds + (_read_clock() - began)

    @no_autograph
    def _make_row_array(self, batches: tf.Tensor) -> tf.TensorArray:
        """Returns an array in host memory for the rows of some batches; an empty one if none are recorded."""
        with tf.device("CPU:0"):
            if self._options.record_rows:
                return tf.TensorArray(tf.int64, size=batches, infer_shape=True)
            return tf.TensorArray(tf.int64, size=0, element_shape=[0])

    @no_autograph
    def _record_rows(self, rows: tf.TensorArray, index: tf.Tensor, batch: Batch) -> tf.TensorArray:
        """Adds the row numbers of a batch of this worker, int64 `[B]`, if they are recorded."""
        if not self._options.record_rows:
            return rows
        with tf.device("CPU:0"):
            return rows.write(index, tf.concat(self._local(batch["row"]), axis=0))

    @no_autograph
    def _sum_gradients(self, batch: Batch) -> list[tf.Tensor]:
        """Returns one replica's gradients, summed over its examples and scaled, and their weight; packed."""
        batch = self._options.attach(batch)
        # [B, H, W, C] float32, and [B] if images are mixed
        images, share = apply_augmentations(batch, self._options.augment)
        labels = batch["label"]  # [B] int32
        weights = batch["weight"]  # [B] float32, 0 for padding
        scale = self.loss_scale.read() if self.loss_scale else tf.constant(1.0)
        totals, sums = self._compiled_forward_backward(images, labels, weights, share, scale)
        self._totals.assign_add(totals)
        return sums

    def _forward_backward(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        weights: tf.Tensor,
        share: tf.Tensor | None,
        scale: tf.Tensor,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Returns the totals of a batch, float64 `[TOTALS]`, and its gradients with the examples' weight.

        The gradients of several replicas are packed, to be summed.
        """
        options = self._options
        with tf.GradientTape() as tape:
            logits = self._network(images, training=True)  # [B, classes], or [B, 1] for two classes
            losses = training_losses(  # [B]
                labels,
                logits,
                share,
                options.label_smoothing,
                self._class_weights,
                options.loss,
                options.bce_threshold,
            )
            loss = tf.reduce_sum(losses * weights)
            scaled_loss = loss * scale
        gradients = tape.gradient(scaled_loss, [v.value for v in self.weights])

        # A prediction for a mixed image counts as correct if it is the label of the larger part.
        targets = labels
        if share is not None:
            targets = tf.where(share >= 0.5, labels, swap_neighbours(labels))
        sums = [*gradients, tf.reduce_sum(weights)]
        if self._packing:
            sums = self._packing.pack(sums)
        return _batch_totals(loss, logits, targets, weights), sums

    @no_autograph
    def _accumulate(self, batch: Batch) -> tf.Tensor:
        """Adds one replica's gradients of a batch to those of the previous batches; returns true."""
        sums = self._sum_gradients(batch)
        for total, gradient in zip(self._accumulated, sums, strict=True):
            total.assign_add(gradient)
        weight = tf.reshape(sums[-1], [-1])[-1]
        return weight >= 0

    @no_autograph
    def _take_accumulated(self) -> list[tf.Tensor]:
        """Returns the accumulated gradients of a replica, and resets them to zero."""
        sums = [tf.identity(total) for total in self._accumulated]
        for total, value in zip(self._accumulated, sums, strict=True):
            with tf.control_dependencies([value]):
                total.assign(tf.zeros_like(value))
        return sums

    @no_autograph
    def _learning_rate(self, update: tf.Tensor) -> tf.Tensor:
        return tf.gather(self.rates, tf.minimum(update, len(self.rates) - 1))

    @no_autograph
    def _update(self, sums: Any, rate: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Applies one update on all replicas if the gradient is finite.

        Returns:
            For each replica of this worker whether training can continue, the same for all.
        """
        return self._local(self._strategy.run(self._update_on_replica, (sums, rate)))

    @no_autograph
    def _update_on_replica(self, sums: list[tf.Tensor], rate: tf.Tensor) -> tf.Tensor:
        if self._packing:
            sums = tf.distribute.get_replica_context().all_reduce("sum", sums, _KEEP_BUFFERS)
        return self._compiled_update(sums, rate)

    @no_autograph
    def _apply_sums(self, sums: list[tf.Tensor], rate: tf.Tensor) -> tf.Tensor:
        """Applies the sums over all replicas to the variables of this replica, unless they are not finite.

        All replicas compute the same from the same sums, so that their variables stay equal.

        Returns:
            Whether training can continue.
        """
        *gradients, weight = self._packing.unpack(sums) if self._packing else sums
        divisor = weight * self.loss_scale.read() if self.loss_scale else weight
        gradients = [gradient / divisor for gradient in gradients]
        # The global norm from the norm of each, which is what `tf.linalg.global_norm` does.
        half_squares = tf.stack([tf.nn.l2_loss(gradient) for gradient in gradients])
        norm = tf.sqrt(2.0 * tf.reduce_sum(half_squares))
        if self._options.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self._options.clip_norm, use_norm=norm)
        is_finite = tf.math.is_finite(norm)
        tf.cond(is_finite, lambda: self._apply_gradients(gradients, 2.0 * half_squares, rate), lambda: None)
        if self.loss_scale is None:
            return is_finite
        return self.loss_scale.update(is_finite)

    def _apply_gradients(self, gradients: list[tf.Tensor], squares: tf.Tensor, rate: tf.Tensor) -> None:
        """Updates the weights of this replica and their moving average, and records the squared norms."""
        self.gradient_norms.add(squares)
        apply_gradients(self._optimizer, gradients, self.weights, rate, self._options.l2)
        if self.average:
            self.average.update(find_replica_copy(self._optimizer.iterations.value))

    @tf.function(autograph=False)
    def _set_state(self, epoch: tf.Tensor, step: tf.Tensor, seed: tf.Tensor, sums: tf.Tensor) -> None:
        def set_on_replica() -> None:
            replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int64)
            # A layer draws once per batch and counts the draws in the second number of its state.
            for layer, state in enumerate(self._dropout_seeds):
                first = seed + 1_000_003 * layer + 7_919 * replica + 2_654_435_761 * epoch
                state.assign(tf.cast(tf.stack([first % 2**32, step]), state.dtype))
            self._totals.assign(tf.where(replica == 0, sums, tf.zeros_like(sums)))

        self._strategy.run(set_on_replica)

    def _local(self, value: Any) -> tuple[Any, ...]:
        """Returns the values of this worker's replicas."""
        return self._strategy.experimental_local_results(value)


def _compile(function: Callable[..., Any], xla: bool) -> Callable[..., Any]:
    """Compiles a function with XLA, or leaves it to the graph that calls it."""
    return tf.function(function, jit_compile=True, autograph=False) if xla else function


def _batch_totals(loss: tf.Tensor, logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Computes the totals of a batch, float64 `[TOTALS]`; zeros if its loss is not finite."""
    top1 = tf.reduce_sum(tf.cast(predict_classes(logits) == labels, tf.float32) * weights)
    top5 = top1
    if logits.shape[-1] > 5:
        top5 = tf.reduce_sum(tf.cast(true_ranks(labels, logits) < 5, tf.float32) * weights)
    totals = tf.cast(tf.stack([loss, top1, top5, tf.reduce_sum(weights)]), tf.float64)
    return tf.where(tf.math.is_finite(loss), totals, tf.zeros_like(totals))


def _sum_variable(value: tf.Tensor) -> tf.Variable:
    """Creates a variable with a value per replica that reads as the sum over all replicas."""
    return tf.Variable(
        value,
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )


def _read_clock() -> tf.Tensor:
    """Returns the time in seconds in a graph, float64 scalar.

    TensorFlow refuses its own operation for it where all operations have to be deterministic.
    """
    if is_op_determinism_enabled():
        return tf.ensure_shape(tf.numpy_function(time.time, [], tf.float64), ())
    return tf.timestamp()
