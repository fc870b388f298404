"""The page's filter patterns: what the filters of every convolution look for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from service.report.analysis.network import Network, Tap
from service.report.analysis.patterns import STEPS, Patterns, patterns, pixels, shown_size
from service.report.drawing.album import Album, Drawing
from service.report.drawing.sheets import Scaling, grid, mosaic, scaling
from service.report.subject import Section, Subject

LAYERS = 8  # at most, spread over the depth
COLUMNS = 8  # patterns a row
# pixels of a pattern's longer side
SMALLEST = 48


def build_section(subject: Subject, album: Album) -> Section | None:
    """Patterns of the first filters of every convolution, or of some where there are many; None without convolutions."""
    network, options = subject.network, subject.options
    layers = chosen_layers(network)
    if not layers or not options.patterns:
        return None
    found = [_patterns(network, tap, options.patterns, options.seed) for tap in layers]
    states = [states_of(patterns_, _alive(subject, patterns_)) for patterns_ in found]
    pictures = album.add_all(
        _drawing(subject, patterns_, state) for patterns_, state in zip(found, states, strict=True)
    )
    shown = [
        {
            "layer": tap.name,
            "picture": picture,
            "sheet": _sheet(patterns_),
            "channels": tap.shape[2],
            "table": _table(patterns_, state),
        }
        for tap, patterns_, picture, state in zip(layers, found, pictures, states, strict=True)
    ]
    figures = [
        {
            "layer": p.layer,
            "filters": list(p.filters),
            "before": p.before.tolist(),
            "after": p.after.tolist(),
            "dead": _dead(p, state),
        }
        for p, state in zip(found, states, strict=True)
    ]
    values = {"layers": shown, "left_out": len(network.convolutions) - len(layers), "steps": STEPS}
    return Section(
        "patterns", "What filters look for", values, {"steps": STEPS, "seed": options.seed, "layers": figures}
    )


def chosen_layers(network: Network) -> list[Tap]:
    """The convolutions whose filters are shown: all, or some spread evenly over the depth."""
    found = network.convolutions
    places = (
        np.unique(np.linspace(0, len(found) - 1, min(LAYERS, len(found))).round().astype(int))
        if found
        else []
    )
    return [found[place] for place in places]


def states_of(found: Patterns, alive: np.ndarray) -> list[str]:
    """What came of every filter: `answers`; or, where nothing made it answer, `silent` if images do, and else `dead`."""
    return [
        "answers" if not silent else "silent" if answers else "dead"
        for silent, answers in zip(found.silent, alive, strict=True)
    ]


def _dead(found: Patterns, states: list[str]) -> list[int]:
    return [number for number, state in zip(found.filters, states, strict=True) if state == "dead"]


def _alive(subject: Subject, found: Patterns) -> np.ndarray:
    """Which of the filters any probe makes answer, bool `[F]`."""
    if not found.silent.any() or not subject.examples:
        return np.zeros(len(found.filters), bool)
    return np.asarray(subject.forward_pass.layers[found.layer].activity.max(axis=0)[list(found.filters)] > 0)


def _patterns(network: Network, tap: Tap, count: int, seed: int) -> Patterns:
    return patterns(
        network, tap.name, range(min(count, tap.shape[2])), seed=seed, size=shown_size(network, tap.name)
    )


def _scaled(found: Patterns) -> Scaling:
    size = found.images.shape[1:3]
    return replace(scaling(*size, smallest=SMALLEST, largest=max(size)), block=8, columns=COLUMNS)


def _drawing(subject: Subject, found: Patterns, states: list[str]) -> Drawing:
    silent = _dead(found, states)
    words = f"Patterns of {len(found.filters)} filters of {found.layer}" + (
        f"; dead: {', '.join(map(str, silent))}" if silent else ""
    )
    origin = {
        "checkpoint": subject.model_digest,
        "layer": found.layer,
        "filters": list(found.filters),
        "steps": STEPS,
        "seed": subject.options.seed,
    }
    return Drawing(
        mosaic(pixels(found.images), _scaled(found), found.silent), "patterns", words, origin, "whole"
    )


def _sheet(found: Patterns) -> dict[str, Any]:
    _, height, width, _ = found.images.shape
    about = grid(height, width, len(found.filters), _scaled(found))
    return about.for_page(found.after, found.silent, numbers=list(found.filters))


def _table(found: Patterns, states: list[str]) -> list[dict[str, Any]]:
    values = zip(found.filters, found.before.tolist(), found.after.tolist(), states, strict=True)
    return [
        {"filter": number, "before": before, "after": after, "state": state}
        for number, before, after, state in values
    ]
