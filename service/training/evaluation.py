"""Evaluation during training: every row of a split once, with the same result for any number of workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice

import keras
import numpy as np
import tensorflow as tf

from pipelines.input.batches import Batches
from pipelines.records import Batch
from service.scores import auc
from service.training.distribute import IN_FLIGHT, distribute_eager_batches
from service.training.losses import predict_classes, training_losses, true_ranks
from service.training.step import Attach
from service.training.strategy import SINGLE_WORKER, WorkerContext, sum_over_workers

MAX_EVALUATIONS = 2**20  # more than any run has
COLUMNS = ("loss", "rank", "predicted", "score")

ReplicaScores = Sequence[tuple[tf.Tensor, tf.Tensor]]  # of each replica: rows [B], scores [B, columns]


class Evaluation:
    """The compiled forward pass of one model over one split. Build it inside the strategy's scope.

    Args:
        network: Model from images, or from what `attach` adds, to logits.
        strategy: Strategy of the training.
        batches: Batches of the split.
        worker: Rank and group of this worker.
        attach: Adds the network's input to a batch; None for the images of `batches`.
        loss: `cross_entropy` or `bce`, as in training.
    """

    def __init__(
        self,
        network: keras.Model,
        strategy: tf.distribute.Strategy,
        batches: Batches,
        worker: WorkerContext = SINGLE_WORKER,
        attach: Attach | None = None,
        loss: str = "cross_entropy",
    ) -> None:
        self._network = network
        self._strategy = strategy
        self._batches = batches
        self._worker = worker
        self._loss = loss
        self._attach = attach or batches.attach
        # One iterator for all evaluations saves the time to start one for each.
        self._iterator = distribute_eager_batches(strategy, batches, worker, 0, epochs=MAX_EVALUATIONS)

    def compute_metrics(self) -> dict[str, float]:
        """Evaluates the model with its current weights. A collective: every worker must call it.

        Returns:
            `val_loss` in nats, `val_accuracy`, `val_top5` for six classes or more, and `val_auc`, the area
            under the ROC curve, for two.
        """
        scores = self.score_rows()
        labels = self._batches.labels
        metrics = {
            "val_loss": float(scores["loss"].mean()),
            "val_accuracy": float((scores["rank"] == 0).mean()),
        }
        if len(self._batches.classes) > 5:
            metrics["val_top5"] = float((scores["rank"] < 5).mean())
        if len(self._batches.classes) == 2 and len(np.unique(labels)) == 2:
            metrics["val_auc"] = auc(labels, scores["score"])
        return metrics

    def score_rows(self) -> dict[str, np.ndarray]:
        """Scores every row of the split. A collective: every worker must call it.

        Returns:
            float64 `[rows]` each: `loss` in nats; `rank`, the number of classes more probable than the true
            one; `predicted`, the most probable class; `score`, the logit of class 1 if there are two classes.

        Raises:
            DataError: An image cannot be read or decoded.
        """
        table = np.zeros((self._batches.rows, len(COLUMNS)), np.float32)
        in_flight: deque[ReplicaScores] = deque()
        with self._batches.data_errors():
            for batch in islice(self._iterator, self._batches.steps):
                scores = self._score_batch(batch)
                in_flight.append(self._strategy.experimental_local_results(scores))
                if len(in_flight) > IN_FLIGHT:
                    _write_scores(in_flight.popleft(), table)
        while in_flight:
            _write_scores(in_flight.popleft(), table)
        if self._worker.world_size > 1:
            table = self._sum_tables(tf.constant(table)).numpy()
        return dict(zip(COLUMNS, table.astype(np.float64).T, strict=True))

    @tf.function(reduce_retracing=True, autograph=False)
    def _score_batch(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        return self._strategy.run(self._score_on_replica, (batch,))

    def _score_on_replica(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns rows `[B]` and scores `[B, columns]` of a batch."""
        images = self._attach(batch)["image"]
        logits = self._network(tf.cast(images, tf.float32), training=False)
        labels = batch["label"]
        columns = (
            training_losses(labels, logits, None, loss=self._loss),
            true_ranks(labels, logits),
            predict_classes(logits),
            _last_class_margin(logits),
        )
        return batch["row"], tf.stack([tf.cast(column, tf.float32) for column in columns], axis=1)

    @tf.function(autograph=False)
    def _sum_tables(self, table: tf.Tensor) -> tf.Tensor:
        """Returns the sum of the workers' tables, in which each row is written by one of them."""
        return sum_over_workers(self._strategy, self._worker, table)


def _write_scores(scores: ReplicaScores, table: np.ndarray) -> None:
    """Waits for the scores of a batch and writes them into the rows of a table, without padding."""
    for rows, values in scores:
        is_real = rows.numpy() >= 0
        table[rows.numpy()[is_real]] = values.numpy()[is_real]


def _last_class_margin(logits: tf.Tensor) -> tf.Tensor:
    """Returns the last logit minus the first, `[B]`; for a single unit, its logit."""
    if logits.shape[-1] == 1:
        return logits[:, -1]
    return logits[:, -1] - logits[:, 0]
