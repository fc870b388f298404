"""Filter patterns: the images that the filters of every convolution respond to most strongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.report.analysis.forward import ForwardPass
from service.report.analysis.fourier_patterns import STEPS as FOURIER_STEPS
from service.report.analysis.network import Network
from service.report.analysis.patterns import (
    STEPS,
    FilterPatterns,
    choose_pattern_layers,
    choose_pattern_size,
    compute_filter_patterns,
    deprocess_patterns,
)
from service.report.drawing.album import Album, Drawing
from service.report.drawing.formatting import anchor
from service.report.drawing.sheets import TileScaling, compute_layout, compute_scaling, draw_sheet
from service.report.sections.filter_cards import FilterCards
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section

COLUMNS = 8  # patterns per row
SMALLEST = 48  # smallest longer side of a pattern, in pixels


def build_section(
    album: Album,
    provenance: Provenance,
    network: Network,
    forward_pass: ForwardPass,
    cards: FilterCards,
    count: int,
    seed: int,
) -> Section | None:
    """Builds the patterns of the first filters of every convolution, or of some spread over the depth.

    Args:
        album: Album the pictures are added to.
        provenance: Model and shard set the pictures are recorded with in the manifest.
        network: Network whose filters are shown.
        forward_pass: Outputs for the examples, which distinguish dead filters from those without a pattern.
        cards: Details of some of these filters.
        count: Number of filters per layer; 0 leaves the section out.
        seed: Seed of the noise that the patterns start from.

    Returns:
        The section; None for a network without convolutions and tokens.
    """
    layers = choose_pattern_layers(network)
    if not layers or not count:
        return None
    views = []
    figures = []
    for layer in layers:
        filters = range(min(count, layer.shape[2]))
        size = choose_pattern_size(network, layer.name)
        patterns = compute_filter_patterns(network, layer.name, filters, seed=seed, size=size)
        states = classify_filters(patterns, _find_active(forward_pass, cards, patterns))
        (picture,) = album.add_all([_draw(provenance, patterns, states, seed)])
        layer_cards = cards.build(layer, states)
        views.append(
            {
                "layer": layer.name,
                "kind": layer.kind,
                "picture": picture,
                "sheet": _describe_sheet(patterns),
                "channels": layer.shape[2],
                "table": _table(patterns, states),
                **layer_cards.values,
            }
        )
        figures.append(
            {
                "layer": patterns.layer,
                "filters": list(patterns.filters),
                "before": patterns.initial_activation.tolist(),
                "after": patterns.final_activation.tolist(),
                "dead": _list_dead(patterns, states),
                **layer_cards.figures,
            }
        )
    values = {
        "layers": views,
        "omitted": len(network.block_outputs) - len(layers),
        "steps": STEPS,
        "fourier_steps": FOURIER_STEPS,
        "scanned": cards.crops.scanned,
        "split": provenance.split,
    }
    all_figures = {
        "steps": STEPS,
        "fourier_steps": FOURIER_STEPS,
        "scanned_images": cards.crops.scanned,
        "seed": seed,
        "layers": figures,
    }
    anchors = frozenset(f"filters-{anchor(layer['layer'])}" for layer in values["layers"])
    return Section("patterns", "Filter patterns", values, all_figures, anchors=anchors)


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


def _find_active(
    forward_pass: ForwardPass, cards: FilterCards, patterns: FilterPatterns
) -> NDArray[np.bool_]:
    """Finds the filters that any scanned image activates, or any example without a scan; bool `[F]`."""
    filters = list(patterns.filters)
    top = cards.crops.find_top(patterns.layer)
    if top is not None and top.activations.shape[1]:
        return np.asarray(top.activations[filters, 0] > 0)
    if not patterns.is_unresponsive.any() or not forward_pass.layer_outputs:
        return np.zeros(len(filters), bool)
    activity = forward_pass.layer_outputs[patterns.layer].mean_activation  # [N, C]
    return np.asarray(activity.max(axis=0)[filters] > 0)


def _list_dead(patterns: FilterPatterns, states: Sequence[str]) -> list[int]:
    return [number for number, state in zip(patterns.filters, states, strict=True) if state == "dead"]


def _scale(patterns: FilterPatterns) -> TileScaling:
    size = patterns.images.shape[1:3]
    return replace(compute_scaling(*size, smallest=SMALLEST, largest=max(size)), block=8, columns=COLUMNS)


def _draw(provenance: Provenance, patterns: FilterPatterns, states: Sequence[str], seed: int) -> Drawing:
    dead = _list_dead(patterns, states)
    text = f"Patterns of {len(patterns.filters)} filters of {patterns.layer} by gradient ascent from noise"
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
    return Drawing(picture, "patterns", text, origin, "webp")


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
