"""The forward pass over the examples: logits, heatmaps and the outputs of every layer from one graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from service.report.analysis.activations import LayerOutputs, collect_layer_outputs
from service.report.analysis.examples import ReportExample
from service.report.analysis.gradcam import METHODS, CamExtractor, Heatmaps
from service.report.analysis.network import Network


@dataclass(frozen=True)
class ForwardPass:
    """Outputs of a network for N images.

    Attributes:
        logits: float32 `[N, K]`.
        heatmaps: float32 `[N, M, h, w]` by layer and method; empty without convolutions.
        layer_outputs: Outputs of every layer, by its name.
    """

    logits: np.ndarray
    heatmaps: Heatmaps
    layer_outputs: dict[str, LayerOutputs]


def choose_heatmap_layers(network: Network, count: int) -> list[str]:
    """Chooses up to `count` layers: the last feature map, and convolutions or blocks spread over the depth.

    Returns:
        Names of the layers, the last one first; none for a network without feature maps.
    """
    last = network.last_feature_map
    if last is None:
        return []
    earlier = [layer.name for layer in network.block_outputs if layer.name != last.name]
    if earlier and not last.is_convolution and not last.has_tokens:
        # The last convolution computed the last feature map.
        earlier = earlier[:-1]
    if not earlier:
        return [last.name]
    indices = np.linspace(0, len(earlier) - 1, min(count - 1, len(earlier))).round().astype(int)
    return [last.name, *(earlier[index] for index in reversed(np.unique(indices)))]


def forward(network: Network, examples: Sequence[ReportExample], layers: Sequence[str]) -> ForwardPass:
    """Runs the examples through the network once, in one compiled graph.

    Args:
        network: The network under analysis.
        examples: Examples with the same number of classes to explain; none give empty results.
        layers: Names of the layers with heatmaps.
    """
    if not examples:
        return ForwardPass(np.zeros((0, network.class_count), np.float32), {}, {})
    classes = np.stack([example.classes for example in examples])  # [N, M]
    extractor = CamExtractor(
        network, layers, METHODS, classes.shape[1], extra_outputs=partial(collect_layer_outputs, network)
    )
    result = extractor(np.stack([example.pixels for example in examples]), classes)
    return ForwardPass(result.logits, result.maps, result.extras)
