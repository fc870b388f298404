"""Evaluation while training: an answer for every row of a split, the same whatever the number of workers."""

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
from service.training.losses import example_losses, predicted_classes, true_ranks
from service.training.step import Attach
from service.training.strategy import ALONE, WorkerContext, distributed_eagerly

MANY = 2**20  # evaluations, more than any run has
COLUMNS = ("loss", "rank", "predicted", "score")
AHEAD = 2  # batches being answered while the next is taken: DALI may overwrite one on a GPU when three more have been taken


class Evaluation:
    """The compiled forward pass of one model over one split. Build it inside the strategy's scope.

    Args:
        net: From images, or what `attach` makes of them, to logits.
        strategy: Of the training.
        batches: The split.
        place: Of this process among the workers.
        attach: Adds to a batch what the net takes; None for the images.
    """

    def __init__(
        self,
        net: keras.Model,
        strategy: tf.distribute.Strategy,
        batches: Batches,
        place: WorkerContext = ALONE,
        attach: Attach | None = None,
    ) -> None:
        self._net, self._strategy, self._batches, self._place = net, strategy, batches, place
        self._attach = attach or batches.attach
        self._again_and_again = distributed_eagerly(strategy, batches, place, 0, epochs=MANY)

    def metrics(self) -> dict[str, float]:
        """Mean loss and accuracy, with top-5 from six classes on, and the area under the ROC curve for two. Every worker must ask."""
        answers, labels = self.answers(), self._batches.labels
        found = {
            "val_loss": float(answers["loss"].mean()),
            "val_accuracy": float((answers["rank"] == 0).mean()),
        }
        if len(self._batches.classes) > 5:
            found["val_top5"] = float((answers["rank"] < 5).mean())
        if len(self._batches.classes) == 2 and len(np.unique(labels)) == 2:
            found["val_auc"] = auc(labels, answers["score"])
        return found

    def answers(self) -> dict[str, np.ndarray]:
        """What the model says of every row, float64 `[rows]` each.

        Returns:
            `loss` in nats; `rank`, how many classes seem more probable than the true one; `predicted`, the most probable class;
            `score`, the logit of class 1 where there are two classes.
        """
        table = np.zeros((self._batches.rows, len(COLUMNS)), np.float32)
        begun: deque[Sequence[tuple[tf.Tensor, tf.Tensor]]] = deque()
        with self._batches.data_errors():
            for batch in islice(self._again_and_again, self._batches.steps):
                begun.append(self._strategy.experimental_local_results(self._answer(batch)))
                if len(begun) > AHEAD:
                    _enter(begun.popleft(), table)
        while begun:
            _enter(begun.popleft(), table)
        if self._place.workers > 1:
            table = self._together(tf.constant(table)).numpy()
        return dict(zip(COLUMNS, table.astype(np.float64).T, strict=True))

    @tf.function(reduce_retracing=True)
    def _answer(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        return self._strategy.run(self._answer_replica, (batch,))

    def _answer_replica(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        logits = self._net(tf.cast(self._attach(batch)["image"], tf.float32), training=False)
        labels = batch["label"]
        columns = (
            example_losses(labels, logits),
            true_ranks(labels, logits),
            predicted_classes(logits),
            logits[:, -1] - _first(logits),
        )
        return batch["row"], tf.stack([tf.cast(column, tf.float32) for column in columns], axis=1)

    @tf.function
    def _together(self, table: tf.Tensor) -> tf.Tensor:
        """The sum of the workers' tables, in which every row is written by one of them."""
        here = self._strategy.num_replicas_in_sync // self._place.workers

        def summed() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            first = context.replica_id_in_sync_group % here == 0  # one replica speaks for its worker
            return context.all_reduce("sum", tf.where(first, table, tf.zeros_like(table)))

        return self._strategy.experimental_local_results(self._strategy.run(summed))[0]


def _enter(answers: Sequence[tuple[tf.Tensor, tf.Tensor]], table: np.ndarray) -> None:
    """Waits for the answers of a batch, from every replica here, and writes them into the rows they are of."""
    for rows, values in answers:
        real = rows.numpy() >= 0
        table[rows.numpy()[real]] = values.numpy()[real]


def _first(logits: tf.Tensor) -> tf.Tensor | float:
    """The logit of class 0: nothing where one unit speaks of class 1 alone."""
    return 0.0 if logits.shape[-1] == 1 else logits[:, 0]
