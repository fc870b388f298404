"""Builds the network of a planned training, without its data, and counts what it computes and holds."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import tensorflow as tf

from pipelines.augment.draw import draw
from pipelines.input.batches import Batches
from pipelines.input.cache import CacheBudget
from pipelines.input.order import steps_per_epoch
from pipelines.input.tfdata import disable_autotuning
from pipelines.records import Batch
from pipelines.shards.manifest import INLINE_VERSION, InlineSplit, Manifest
from service.config import RunConfig
from service.planning.workload import NetworkFigures, Site
from service.report.analysis.architecture import LayerFigures, describe_architecture
from service.report.analysis.network import Network
from service.training.features import FeatureCache
from service.training.learner import Learner, build_learner, build_network

OPERATIONS = 2  # of a multiply-add
MIDDLE_GREY = 127.5
STORED_SHAPE = (375, 500, 3)  # of the images that the random batch stands for


class SyntheticBatches:
    """Stands for the batches of a training split that need not exist: one random batch, again and again.

    Args:
        config: Configuration of the run.
        rows: Images of the split.
        classes: Names of the classes.

    Attributes:
        rows: Images of the split.
        steps: Steps of an epoch.
        classes: Names of the classes.
        manifest: Manifest of a shard set without shards.
    """

    def __init__(self, config: RunConfig, rows: int, classes: Sequence[str]) -> None:
        self.rows = rows
        self.steps = steps_per_epoch(rows, config.global_batch)
        self.classes = tuple(classes)
        self._config = config
        split = InlineSplit(
            shards=(),
            class_counts=(1,) * len(self.classes),
            mean=(MIDDLE_GREY,) * 3,
            std=(MIDDLE_GREY,) * 3,
        )
        self.manifest = Manifest(
            version=INLINE_VERSION,
            format="arrow",
            encoding="as-found",
            store_size=None,
            source="plan",
            fingerprint="",
            classes=self.classes,
            splits={"train": split},
            rejected=0,
        )

    def attach(self, batch: Batch) -> Batch:
        """Returns the batch, which has its images already."""
        return batch

    def repeat(self) -> tf.data.Dataset:
        """Returns a dataset that repeats a random batch, with the parameters of its augmentation."""
        config = self._config
        size = config.global_batch
        generator = np.random.default_rng(config.seed)
        shape = (size, *config.data.image_size, config.data.channels)
        rows = np.arange(size)
        batch: dict[str, Any] = {
            "image": generator.integers(0, 256, shape, np.uint8),
            "label": (rows % len(self.classes)).astype(np.int32),
            "weight": np.ones(size, np.float32),
            "row": rows.astype(np.int64),
        }
        if config.augment is not None:
            stored = np.tile(np.array(STORED_SHAPE, np.int32), (size, 1))
            batch |= draw(config.augment, config.seed, 1, rows, config.data, stored)
        return disable_autotuning(tf.data.Dataset.from_tensors(batch).cache().repeat())


class PlannedBudget(CacheBudget):
    """Chooses the memory of decoded images as a training does, for machines that need not be here."""

    replicas: int = 1

    @classmethod
    def of_site(cls, site: Site) -> PlannedBudget:
        """Returns the budget of one worker for each host, with all of its memory free."""
        budget = cls(
            tf.distribute.get_strategy(),
            ram=site.ram_bytes,
            gpu=site.gpu_memory_bytes if site.gpus else 0,
        )
        # Between hosts the images would have to travel through the network: each holds all of them.
        budget.replicas = max(site.gpus, 1) if site.hosts == 1 else 1
        return budget

    @property
    def _replicas(self) -> int:
        return self.replicas


def build_planned_learner(config: RunConfig, batches: SyntheticBatches) -> Learner:
    """Builds model, optimizer and steps of the first stage of a run, on one device.

    Args:
        config: Configuration of the run. Features of frozen layers are not cached, so that every image passes
            the whole network.
        batches: Batches that stand for its data.

    Raises:
        ConfigError: The model or its settings cannot be used.
    """
    strategy = tf.distribute.get_strategy()
    uncached = config.model_copy(update={"data": config.data.model_copy(update={"cache": "none"})})
    train = cast(Batches, batches)
    model = build_network(uncached, strategy, train, is_new=False)
    features = FeatureCache(uncached, strategy, train, None, CacheBudget(strategy))
    return build_learner(uncached, train, model, features)


def describe_learner(learner: Learner, name: str) -> NetworkFigures:
    """Counts what the network of a training computes and holds.

    Args:
        learner: Model, optimizer and steps of the first stage.
        name: Name of the model.
    """
    network = learner.stage_network.training_network
    architecture = describe_architecture(Network(network, head="logits"))
    layers = list(architecture.layers.values())
    variables = learner.variables
    return NetworkFigures(
        name=name,
        parameters=sum(math.prod(variable.shape) for variable in variables["model"]),
        trainable_parameters=sum(math.prod(weight.shape) for weight in learner.steps.weights),
        multiply_adds=architecture.multiply_adds,
        training_operations=count_training_operations(layers),
        activation_values=sum(math.prod(layer.node.shape) for layer in layers),
        optimizer_bytes=sum(_count_bytes(variable) for variable in variables["optimizer"]),
        checkpoint_bytes=measure_archive([v for group in variables.values() for v in group]),
        unknown_layers=tuple(architecture.unknown_layers),
    )


def count_training_operations(layers: Sequence[LayerFigures]) -> int:
    """Counts the floating-point operations of forward and backward pass for one image.

    The gradients of a layer's weights take as many as its forward pass, and those of its input too; the
    latter are computed only where a layer that learns comes before.

    Args:
        layers: The layers in the order in which they run.
    """
    operations = 0
    has_learning_layer_before = False
    for layer in layers:
        forward = OPERATIONS * (layer.multiply_adds or 0)
        passes = 1 + int(has_learning_layer_before)
        if layer.trainable_parameters:
            passes += 1
            has_learning_layer_before = True
        elif not layer.parameters and has_learning_layer_before:
            # A product of two tensors, as in attention, has gradients for both of them; a layer without
            # multiply-adds costs nothing here.
            passes += 1
        operations += passes * forward
    return operations


def measure_archive(variables: Sequence[Any]) -> int:
    """Returns the size of a checkpoint's archive in bytes, exactly, without making its arrays.

    Every entry takes its values, a header that depends on shape and type, and what the archive adds for it.

    Args:
        variables: Variables of Keras or TensorFlow, in the order of the checkpoint.
    """
    empty = io.BytesIO()
    names = [f"{number:04d}" for number in range(len(variables))]
    entry = np.empty(0, np.float32)
    np.savez(empty, allow_pickle=False, **dict.fromkeys(names, entry))
    header_of_entry = _measure_header((0,), entry.dtype)
    size = empty.getbuffer().nbytes
    for variable in variables:
        header = _measure_header(tuple(variable.shape), _find_dtype(variable))
        size += _count_bytes(variable) + header - header_of_entry
    return size


def _measure_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    file = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, description)
    return file.getbuffer().nbytes


def _find_dtype(variable: Any) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(tf.as_dtype(variable.dtype).as_numpy_dtype)
    return dtype


def _count_bytes(variable: Any) -> int:
    size: int = math.prod(variable.shape)
    return size * _find_dtype(variable).itemsize
