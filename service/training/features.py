"""Computes the output of frozen layers once per image, so that training runs only the other layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipelines.input.batches import Batches
from pipelines.input.cache import CacheBudget, Tier
from pipelines.input.placement import allocate, copy_to_device, list_devices
from pipelines.records import Batch
from service.config import RunConfig
from service.models.layers import build_logits_model, resize_input
from service.training.step import Attach

BATCH = 64


@dataclass(frozen=True)
class StageNetwork:
    """The part of a model that one stage of a run executes, and its input.

    Attributes:
        network: Model from images or features to logits, for evaluation.
        training_network: The same layers for images of the size used in training.
        attach_train: Adds the input of the network to a batch of the training split.
        attach_validation: The same for the validation split, if there is one.
        tier: Memory that holds the features, or the reason why there is none; None without frozen layers.
        tables: Feature tables of the splits.
    """

    network: keras.Model
    training_network: keras.Model
    attach_train: Attach
    attach_validation: Attach | None
    tier: Tier | None = None
    tables: tuple[FeatureTable, ...] = ()

    def compute_features(self) -> None:
        """Fills the feature tables with the current weights; call it before the network runs.

        Raises:
            DataError: An image cannot be read or decoded.
        """
        for table in self.tables:
            table.compute()

    def describe_cache(self) -> dict[str, str]:
        """Returns an entry for the caches in the status, if there are frozen layers."""
        return {"features": str(self.tier)} if self.tier else {}


class FeatureCache:
    """Caches the features of a run if possible: without augmentation, and with a single replica.

    Args:
        config: Configuration of the run.
        strategy: Strategy of the training.
        train: Batches of the training split.
        validation: Batches of the validation split, if there is one.
        cache: Memory that decoded images and features share.
    """

    def __init__(
        self,
        config: RunConfig,
        strategy: tf.distribute.Strategy,
        train: Batches,
        validation: Batches | None,
        cache: CacheBudget,
    ) -> None:
        self.strategy = strategy
        self._config = config
        self._cache = cache
        self._train = train
        self._validation = validation
        self._whole: StageNetwork | None = None

    def build_stage_network(self, model: keras.Model) -> StageNetwork:
        """Returns the part to execute of a model whose layers have been frozen for a stage.

        Args:
            model: The model, which ends in `logits` and `probabilities`.
        """
        if self._whole is None:
            self._whole = self._build_whole_network(model)
        if self._config.augment or self._config.data.cache == "none":
            return self._whole
        features = find_frozen_features(model)
        if features is None:
            return self._whole
        if self.strategy.num_replicas_in_sync > 1:
            return replace(self._whole, tier=Tier("none", "features are kept for one replica alone"))

        rows = self._train.rows + (self._validation.rows if self._validation else 0)
        size = 4 * rows * int(np.prod(features.shape[1:]))
        tier = self._cache.reserve(size, f"features of frozen layers, up to {_layer_name(features)}")
        if tier.name == "none":
            return replace(self._whole, tier=tier)

        base = keras.Model(model.input, features, name="base")
        rest = keras.Model(features, model.get_layer("logits").output, name="rest")
        train = self._create_table(base, "train", tier)
        if self._validation is None:
            return StageNetwork(rest, rest, train.attach, None, tier, (train,))
        validation = self._create_table(base, "validation", tier)
        return StageNetwork(rest, rest, train.attach, validation.attach, tier, (train, validation))

    def _build_whole_network(self, model: keras.Model) -> StageNetwork:
        network = build_logits_model(model)
        training_size = self._config.augment.size if self._config.augment else None
        training_network = resize_input(network, training_size) if training_size else network
        attach_validation = self._validation.attach if self._validation else None
        return StageNetwork(network, training_network, self._train.attach, attach_validation)

    def _create_table(self, base: keras.Model, split: str, tier: Tier) -> FeatureTable:
        batches = Batches(self._config.shards, split, self._config.data, BATCH)
        device = list_devices(self.strategy)[0] if tier.name == "device" else "CPU:0"
        return FeatureTable(base, batches, device)


class FeatureTable:
    """The features of all images of a split, in memory.

    Args:
        base: Model from images to features.
        batches: Batches of the split in stored order.
        device: Name of the device that holds the table.
    """

    def __init__(self, base: keras.Model, batches: Batches, device: str) -> None:
        self._base = base
        self._batches = batches
        self._device = device
        self._table: tf.Tensor | None = None

    def compute(self) -> None:
        """Runs the base on every image, once.

        Raises:
            DataError: An image cannot be read or decoded.
        """
        if self._table is not None:
            return
        predict = self._compile_base()
        # [rows + 1, ...]: the last row is for padding, a black image that batch statistics include
        table = allocate((self._batches.rows + 1, *self._base.output.shape[1:]), np.float32)
        table[-1] = predict(np.zeros((1, *self._base.input.shape[1:]), np.uint8))[0]
        with self._batches.data_errors():
            for batch in self._batches.epoch(0):
                rows = np.asarray(batch["row"])
                is_real = rows >= 0
                table[rows[is_real]] = np.asarray(predict(batch["image"]), np.float32)[is_real]
        self._table = copy_to_device(table, self._device)

    def _compile_base(self) -> Callable[[tf.Tensor], tf.Tensor]:
        def predict(images: tf.Tensor) -> tf.Tensor:
            return self._base(tf.cast(images, tf.float32), training=False)

        compiled: Callable[[tf.Tensor], tf.Tensor] = tf.function(predict, autograph=False)
        return compiled

    def attach(self, batch: Batch) -> Batch:
        """Replaces the images of a batch by features, float32 `[B, ...]`."""
        rows = batch["row"]
        with tf.device(self._device):
            padding = tf.constant(self._batches.rows, tf.int64)
            features = tf.gather(self._table, tf.where(rows < 0, padding, rows))
            return {**batch, "image": features}


def find_frozen_features(model: keras.Model) -> keras.KerasTensor | None:
    """Finds the last tensor that nothing trainable or random affects, and that all later layers depend on.

    Args:
        model: The model, which ends in `logits` and `probabilities`.

    Returns:
        The tensor, or None if there are no frozen weights before it.
    """
    by_depth = sorted(model._nodes_by_depth.items(), reverse=True)  # from the image on
    nodes = [node for _, nodes in by_depth for node in nodes]
    last_use: dict[int, int] = {}
    for position, node in enumerate(nodes):
        for tensor in node.input_tensors:
            last_use[id(tensor)] = position

    features = None
    has_weights = False
    outputs: list[keras.KerasTensor] = []
    for position, node in enumerate(nodes):
        if node.operation.name == "logits" or not _is_constant(node.operation):
            break
        has_weights = has_weights or bool(getattr(node.operation, "weights", ()))
        outputs += node.output_tensors
        needed_later = [tensor for tensor in outputs if last_use.get(id(tensor), -1) > position]
        if has_weights and len(needed_later) == 1:
            features = needed_later[0]
    return features


def _is_constant(operation: Any) -> bool:
    """Tells whether an operation has the same output for an image throughout the training."""
    if not isinstance(operation, keras.Layer):
        return True
    layers = [layer for layer in operation._flatten_layers() if not layer._layers]
    return not any(_is_trained(layer) or _is_random(layer) for layer in layers)


def _is_trained(layer: keras.Layer) -> bool:
    return bool(layer.trainable and layer.weights)


def _is_random(layer: keras.Layer) -> bool:
    has_seed = any("seed_generator_state" in v.path for v in layer.variables)
    return has_seed and bool(getattr(layer, "rate", 1))


def _layer_name(tensor: keras.KerasTensor) -> str:
    """Returns the name of the layer that computes a tensor."""
    return str(tensor._keras_history.operation.name)
