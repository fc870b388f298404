"""One look at the probes: logits, heatmaps and the values of every layer, out of one compiled graph."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from service.report.activations import LayerValues, layer_values
from service.report.gradcam import METHODS, Heatmaps, Maps
from service.report.network import Network
from service.report.subject import Subject


@dataclass(frozen=True)
class Look:
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


def look(subject: Subject) -> Look:
    """Looks at the probes of a subject."""
    network, probes = subject.network, subject.probes
    layers = heatmap_layers(network, subject.options.heatmap_layers)
    if not probes:
        return Look(np.zeros((0, network.classes), np.float32), {}, {})
    classes = np.stack([probe.classes for probe in probes])
    heatmaps = Heatmaps(network, layers, METHODS, classes.shape[1], also=partial(layer_values, network))
    seen = heatmaps(np.stack([probe.pixels for probe in probes]), classes)
    return Look(seen.logits, seen.maps, seen.also)
