"""Computes outputs for the same images at several checkpoints of a run, on shared scales."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipelines.errors import TrainingError
from service.checkpoint import RunCheckpoint
from service.inference.interpretation import Head
from service.report.analysis.activations import find_inactive_channels, standardize_channels
from service.report.analysis.gradcam import CamExtractor
from service.report.analysis.network import LayerInfo, Network
from service.report.analysis.patterns import FilterPatterns, choose_pattern_size, compute_filter_patterns

logger = logging.getLogger(__name__)

# Largest number of convolutions whose channels are collected.
MAX_LAYERS = 3
# Largest number of channels collected per convolution.
MAX_CHANNELS = 16


@dataclass(frozen=True)
class CheckpointOutputs:
    """Outputs of one checkpoint for `B` images.

    Attributes:
        epoch: Epoch at whose end the checkpoint was saved.
        probabilities: float32 `[B, K]`.
        maps: Grad-CAM of the true classes, float32 `[B, h, w]`, at least 0; `[B, 0, 0]` if not available.
        channels: First channels of some convolutions, float32 `[B, H, W, <= MAX_CHANNELS]`, by layer name.
        patterns: Patterns of the first filters of the last of these convolutions, from the same noise at each
            checkpoint; None if they were not requested.
    """

    epoch: int
    probabilities: np.ndarray
    maps: np.ndarray
    channels: dict[str, np.ndarray] = field(default_factory=dict)
    patterns: FilterPatterns | None = None


def run_checkpoints(  # noqa: PLR0913 (how the model is interpreted is three of them)
    model: keras.Model,
    scale: float,
    checkpoints: Sequence[RunCheckpoint],
    images: np.ndarray,
    labels: np.ndarray,
    filters: int = 0,
    *,
    offset: float = 0.0,
    head: Head | None = None,
) -> list[CheckpointOutputs]:
    """Runs a model with the weights of every checkpoint; damaged checkpoints are left out.

    Args:
        model: Model of the run; its weights are overwritten.
        scale: Factor on the pixels before they enter the model.
        checkpoints: Checkpoints of the run, in order.
        images: uint8 `[B, H, W, C]`.
        labels: True classes, int `[B]`.
        filters: Number of filter patterns per checkpoint; they take longer than everything else.
        offset: Summand after the multiplication by `scale`.
        head: Whether the outputs are probabilities or logits; None decides it from the outputs.
    """
    network = Network(model, scale, offset=offset, head=head)
    layers = choose_layers(network)
    run_images = network.compile_graph(lambda x: _collect_channels(network, x, layers))
    last = network.last_feature_map
    extractor = CamExtractor(network, [last.name]) if last is not None else None
    outputs = []
    for checkpoint in checkpoints:
        try:
            checkpoint.load(model)
        except TrainingError as error:
            logger.warning("left out of the report: %s", error)
            continue
        logits, channels = run_images(images)
        maps = np.zeros((len(images), 0, 0), np.float32)
        if extractor is not None:
            (by_class,) = extractor(images, labels[:, None]).maps.values()  # [B, 1, h, w]
            maps = by_class[:, 0]
        patterns = None
        if layers and filters:
            patterns = _compute_patterns(network, layers[-1], filters)
        outputs.append(
            CheckpointOutputs(
                epoch=checkpoint.epoch,
                probabilities=tf.nn.softmax(logits).numpy(),
                maps=maps,
                channels={layer.name: values.numpy() for layer, values in zip(layers, channels, strict=True)},
                patterns=patterns,
            )
        )
    return outputs


def choose_layers(network: Network) -> list[LayerInfo]:
    """Chooses the first, a middle and the last convolution."""
    convolutions = network.convolutions
    indices = np.linspace(0, len(convolutions) - 1, min(MAX_LAYERS, len(convolutions)))
    return [convolutions[round(index)] for index in indices]


def standardize_jointly(values: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Standardizes channels on one scale: mean and deviation are over all checkpoints and images.

    Args:
        values: The channels at every checkpoint, float32 `[B, H, W, C]`.

    Returns:
        For every checkpoint the standardized channels, float32 `[B, H, W, C]`, 0 to 255, and flags of the
        inactive ones, bool `[B, C]`.
    """
    stacked = np.stack(values)  # [checkpoints, B, H, W, C]
    mean = stacked.mean(axis=(0, 1, 2, 3))
    deviation = stacked.std(axis=(0, 1, 2, 3))
    standardized = []
    for channels in stacked:
        levels = standardize_channels(channels, mean, deviation).numpy()
        standardized.append((levels, find_inactive_channels(channels).numpy()))
    return standardized


def compute_shared_limits(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Computes the highest value of every image's maps over all checkpoints, float32 `[B]`; 1 if all are 0.

    Args:
        maps: The maps at every checkpoint, float32 `[B, h, w]`; sizes may differ between checkpoints.
    """
    highest = np.max([batch.reshape(len(batch), -1).max(axis=1, initial=0) for batch in maps], axis=0)
    return np.asarray(np.where(highest > 0, highest, 1), np.float32)


def _compute_patterns(network: Network, layer: LayerInfo, count: int) -> FilterPatterns:
    filters = range(min(count, layer.shape[2]))
    size = choose_pattern_size(network, layer.name)
    return compute_filter_patterns(network, layer.name, filters, size=size)


def _collect_channels(network: Network, images: Any, layers: Sequence[LayerInfo]) -> tuple[Any, list[Any]]:
    """Returns the logits and the first channels of some layers; runs in the graph."""
    trace = network.run(images)
    channels = [tf.cast(trace.outputs[layer.name][..., :MAX_CHANNELS], tf.float32) for layer in layers]
    return trace.logits, channels
