"""One look at the probes: logits, heatmaps and the values of every layer, out of one compiled graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from service.report.analysis.activations import LayerValues, layer_values
from service.report.analysis.examples import ReportExample
from service.report.analysis.gradcam import METHODS, Heatmaps, Maps
from service.report.analysis.network import Network


@dataclass(frozen=True)
class ForwardPass:
    """What a network makes of N images.

    Attributes:
        logits: float32 `[N, K]`.
        maps: Heatmaps float32 `[N, M, h, w]` by layer and method; none where there is no convolution.
        layers: What every layer gave, by name.
    """

    logits: np.ndarray
    maps: Maps
    layers: dict[str, LayerValues]


def heatmap_layers(network: Network, count: int) -> list[str]:
    """The last feature map, and before it convolutions spread evenly over the depth; the last first."""
    last = network.last_map
    if last is None:
        return []
    before = [tap.name for tap in network.convolutions if tap.name != last.name]
    before = (
        before[:-1] if before and not last.is_convolution else before
    )  # the last convolution made the last map
    places = (
        np.unique(np.linspace(0, len(before) - 1, min(count - 1, len(before))).round().astype(int))
        if before
        else []
    )
    return [last.name, *(before[place] for place in reversed(places))]


def forward(network: Network, examples: Sequence[ReportExample], layers: Sequence[str]) -> ForwardPass:
    """Runs the examples through the network once, in one compiled graph.

    Args:
        network: The network that is examined.
        examples: The images; none give empty results.
        layers: Layers whose feature maps get heatmaps.
    """
    if not examples:
        return ForwardPass(np.zeros((0, network.classes), np.float32), {}, {})
    classes = np.stack([example.classes for example in examples])  # [N, M]
    heatmaps = Heatmaps(network, layers, METHODS, classes.shape[1], also=partial(layer_values, network))
    seen = heatmaps(np.stack([example.pixels for example in examples]), classes)
    return ForwardPass(seen.logits, seen.maps, seen.also)
