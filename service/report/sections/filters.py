"""Filter patterns: the images that the filters of every convolution respond to most strongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.report.analysis.forward import ForwardPass
from service.report.analysis.network import LayerInfo, Network
from service.report.analysis.patterns import (
    STEPS,
    FilterPatterns,
    choose_pattern_size,
    compute_filter_patterns,
    deprocess_patterns,
)
from service.report.drawing.album import Album, Drawing
from service.report.drawing.sheets import TileScaling, compute_layout, compute_scaling, draw_sheet
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section

LAYERS = 8  # largest number of layers, spread over the depth
COLUMNS = 8  # patterns per row
SMALLEST = 48  # smallest longer side of a pattern, in pixels


def build_section(
    album: Album,
    provenance: Provenance,
    network: Network,
    forward_pass: ForwardPass,
    count: int,
    seed: int,
) -> Section | None:
    """Builds the patterns of the first filters of every convolution, or of some spread over the depth.

    Args:
        album: Album the pictures are added to.
        provenance: Model and shard set the pictures are recorded with in the manifest.
        network: Network whose filters are shown.
        forward_pass: Outputs for the examples, which distinguish dead filters from those without a pattern.
        count: Number of filters per layer; 0 leaves the section out.
        seed: Seed of the noise that the patterns start from.

    Returns:
        The section; None for a network without convolutions.
    """
    layers = select_layers(network)
    if not layers or not count:
        return None
    all_patterns = []
    states = []
    for layer in layers:
        filters = range(min(count, layer.shape[2]))
        size = choose_pattern_size(network, layer.name)
        layer_patterns = compute_filter_patterns(network, layer.name, filters, seed=seed, size=size)
        all_patterns.append(layer_patterns)
        states.append(classify_filters(layer_patterns, _find_active(forward_pass, layer_patterns)))
    drawings = [
        _draw(provenance, layer_patterns, state, seed)
        for layer_patterns, state in zip(all_patterns, states, strict=True)
    ]
    views = []
    figures = []
    for layer, layer_patterns, state, picture in zip(
        layers, all_patterns, states, album.add_all(drawings), strict=True
    ):
        views.append(
            {
                "layer": layer.name,
                "picture": picture,
                "sheet": _describe_sheet(layer_patterns),
                "channels": layer.shape[2],
                "table": _table(layer_patterns, state),
            }
        )
        figures.append(
            {
                "layer": layer_patterns.layer,
                "filters": list(layer_patterns.filters),
                "before": layer_patterns.initial_activation.tolist(),
                "after": layer_patterns.final_activation.tolist(),
                "dead": _list_dead(layer_patterns, state),
            }
        )
    values = {"layers": views, "omitted": len(network.convolutions) - len(layers), "steps": STEPS}
    return Section("patterns", "Filter patterns", values, {"steps": STEPS, "seed": seed, "layers": figures})


def select_layers(network: Network) -> list[LayerInfo]:
    """Selects the convolutions whose filters are shown: all, or some spread evenly over the depth."""
    convolutions = network.convolutions
    if not convolutions:
        return []
    count = min(LAYERS, len(convolutions))
    indices = np.unique(np.linspace(0, len(convolutions) - 1, count).round().astype(int))
    return [convolutions[index] for index in indices]


def classify_filters(patterns: FilterPatterns, is_active: NDArray[np.bool_]) -> list[str]:
    """Classifies filters by whether anything activates them.

    Args:
        patterns: Patterns of F filters.
        is_active: bool `[F]`, whether any example activates the filter.

    Returns:
        For each filter `active`; or, if gradient ascent never activated it, `no pattern` if images do, and
        else `dead`.
    """
    states = []
    for is_silent, is_active_on_images in zip(patterns.is_unresponsive, is_active, strict=True):
        if not is_silent:
            states.append("active")
        elif is_active_on_images:
            states.append("no pattern")
        else:
            states.append("dead")
    return states


def _find_active(forward_pass: ForwardPass, patterns: FilterPatterns) -> NDArray[np.bool_]:
    """Finds the filters that any example activates, bool `[F]`."""
    if not patterns.is_unresponsive.any() or not forward_pass.layer_outputs:
        return np.zeros(len(patterns.filters), bool)
    activity = forward_pass.layer_outputs[patterns.layer].mean_activation  # [N, C]
    return np.asarray(activity.max(axis=0)[list(patterns.filters)] > 0)


def _list_dead(patterns: FilterPatterns, states: Sequence[str]) -> list[int]:
    return [number for number, state in zip(patterns.filters, states, strict=True) if state == "dead"]


def _scale(patterns: FilterPatterns) -> TileScaling:
    size = patterns.images.shape[1:3]
    return replace(compute_scaling(*size, smallest=SMALLEST, largest=max(size)), block=8, columns=COLUMNS)


def _draw(provenance: Provenance, patterns: FilterPatterns, states: Sequence[str], seed: int) -> Drawing:
    dead = _list_dead(patterns, states)
    text = f"Patterns of {len(patterns.filters)} filters of {patterns.layer}"
    if dead:
        text += f"; dead: {', '.join(map(str, dead))}"
    origin = {
        "checkpoint": provenance.model_digest,
        "layer": patterns.layer,
        "filters": list(patterns.filters),
        "steps": STEPS,
        "seed": seed,
    }
    picture = draw_sheet(deprocess_patterns(patterns.images), _scale(patterns), patterns.is_unresponsive)
    return Drawing(picture, "patterns", text, origin, "jpeg-444")


def _describe_sheet(patterns: FilterPatterns) -> dict[str, Any]:
    """Returns the positions of the tiles and the filters they show, for the page's script."""
    _, height, width, _ = patterns.images.shape
    layout = compute_layout(height, width, len(patterns.filters), _scale(patterns))
    return layout.build_page_data(
        patterns.final_activation, patterns.is_unresponsive, numbers=list(patterns.filters)
    )


def _table(patterns: FilterPatterns, states: Sequence[str]) -> list[dict[str, Any]]:
    values = zip(
        patterns.filters,
        patterns.initial_activation.tolist(),
        patterns.final_activation.tolist(),
        states,
        strict=True,
    )
    return [
        {"filter": number, "before": before, "after": after, "state": state}
        for number, before, after, state in values
    ]
