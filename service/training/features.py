"""What the frozen front of a network says of every image, computed once and kept: then only what learns is run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipelines.input.batches import Batches
from pipelines.input.cache import Cache, Tier
from pipelines.records import Batch
from service.config import RunConfig
from service.models import logits_of, resized
from service.training.step import Attach

BATCH = 64


@dataclass(frozen=True)
class Views:
    """What a stage runs of a network, and on what.

    Attributes:
        net: To logits, from images or features.
        learning: The same for images of the size that training sees.
        train: Adds those to a batch of the training split.
        validation: The same for the validation split, where there is one.
        tier: Where features are kept, or why not; None where there is nothing to keep.
        tables: Of features.
    """

    net: keras.Model
    learning: keras.Model
    train: Attach
    validation: Attach | None
    tier: Tier | None = None
    tables: tuple[Features, ...] = ()

    def prepared(self) -> Views:
        """Computes the features, with the weights as they are now."""
        for table in self.tables:
            table.compute()
        return self

    def told(self) -> dict[str, str]:
        """For the log of where things are kept."""
        return {"features": str(self.tier)} if self.tier else {}


class Gallery:
    """Keeps the features of a run, where that is possible: of images as they are, in one replica.

    Args:
        config: Of the run.
        strategy: Of the training.
        train: The training split.
        validation: The validation split, where there is one.
        cache: The memory that may be taken.
    """

    def __init__(
        self,
        config: RunConfig,
        strategy: tf.distribute.Strategy,
        train: Batches,
        validation: Batches | None,
        cache: Cache,
    ) -> None:
        self.strategy, self._config, self._cache = strategy, config, cache
        self._train, self._validation = train, validation
        self._whole: Views | None = None

    def views(self, model: keras.Model) -> Views:
        """What to run of a model, which of whose layers are trainable has been settled; `Views.prepared` before it runs."""
        if self._whole is None:
            net, size = logits_of(model), self._config.augment.size if self._config.augment else None
            learning = resized(net, size) if size else net
            self._whole = Views(
                net, learning, self._train.attach, self._validation.attach if self._validation else None
            )
        cut = None if self._config.augment or self._config.data.cache == "none" else frozen_front(model)
        if cut is None:
            return self._whole
        if self.strategy.num_replicas_in_sync > 1:
            return replace(self._whole, tier=Tier("none", "features are kept for one replica alone"))
        rows = self._train.rows + (self._validation.rows if self._validation else 0)
        tier = self._cache.reserve(
            4 * rows * int(np.prod(cut.shape[1:])), f"features of frozen layers, up to {_name(cut)}"
        )
        if tier.name == "none":
            return replace(self._whole, tier=tier)
        front, rest = (
            keras.Model(model.input, cut, name="front"),
            keras.Model(cut, model.get_layer("logits").output, name="rest"),
        )
        tables = [
            self._features(front, split, tier)
            for split in ("train", *(["validation"] if self._validation else []))
        ]
        return Views(
            rest, rest, tables[0].attach, tables[1].attach if self._validation else None, tier, tuple(tables)
        )

    def _features(self, front: keras.Model, split: str, tier: Tier) -> Features:
        return Features(
            front,
            Batches(self._config.shards, split, self._config.data, BATCH),
            on_device=tier.name == "device",
        )


def frozen_front(model: keras.Model) -> keras.KerasTensor | None:
    """The last tensor that all that follows hangs on, and before which nothing learns or draws; None without frozen weights before it.

    Args:
        model: Ends in `logits` and `probabilities`.
    """
    nodes = [
        node for _, nodes in sorted(model._nodes_by_depth.items(), reverse=True) for node in nodes
    ]  # from the image on
    last_use = {id(x): place for place, node in enumerate(nodes) for x in node.input_tensors}
    cut, kept, made = None, False, list[keras.KerasTensor]()
    for place, node in enumerate(nodes):
        if node.operation.name == "logits" or not _settled(node.operation):
            break
        kept = kept or bool(getattr(node.operation, "weights", ()))
        made += node.output_tensors
        needed = [x for x in made if last_use.get(id(x), -1) > place]
        if kept and len(needed) == 1:
            cut = needed[0]
    return cut


def _settled(operation: Any) -> bool:
    """Whether an operation says the same of an image each time, whatever is learned."""
    if not isinstance(operation, keras.Layer):
        return True
    return not any(
        _learns(layer) or _draws(layer) for layer in operation._flatten_layers() if not layer._layers
    )


def _learns(layer: keras.Layer) -> bool:
    return bool(layer.trainable and layer.weights)


def _draws(layer: keras.Layer) -> bool:
    return bool(getattr(layer, "rate", 1)) and any("seed_generator_state" in v.path for v in layer.variables)


class Features:
    """The features of all images of a split, in memory.

    Args:
        front: From images to features.
        batches: The split in its stored order.
        on_device: Whether they lie where the training runs, else in RAM.
    """

    def __init__(self, front: keras.Model, batches: Batches, on_device: bool) -> None:
        self._front, self._batches, self._device = front, batches, None if on_device else "CPU:0"
        self._table: tf.Tensor | None = None

    def compute(self) -> None:
        """Runs the front on every image, unless that is done.

        Raises:
            DataError: An image cannot be read or decoded.
        """
        if self._table is not None:
            return
        answer = tf.function(
            lambda images: self._front(tf.cast(images, tf.float32), training=False), autograph=False
        )
        table = np.zeros((self._batches.rows + 1, *self._front.output.shape[1:]), np.float32)
        table[-1] = answer(np.zeros((1, *self._front.input.shape[1:]), np.uint8))[
            0
        ]  # padding is black, and batch statistics see it
        with self._batches.data_errors():
            for batch in self._batches.epoch(0):
                rows = np.asarray(batch["row"])
                table[rows[rows >= 0]] = np.asarray(answer(batch["image"]), np.float32)[rows >= 0]
        with tf.device(self._device):
            self._table = tf.constant(table)

    def attach(self, batch: Batch) -> Batch:
        """Puts features, float32 `[B, ...]`, in the place of the images of a batch."""
        rows = batch["row"]
        with tf.device(self._device):
            return {
                **batch,
                "image": tf.gather(
                    self._table, tf.where(rows < 0, tf.constant(self._batches.rows, tf.int64), rows)
                ),
            }


def _name(tensor: keras.KerasTensor) -> str:
    """Of the operation that a tensor comes from."""
    return str(tensor._keras_history.operation.name)
