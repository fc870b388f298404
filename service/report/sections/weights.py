"""Weights as they are: filters of the first convolution and weights of dense layers, blue below zero, white at it, red above."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.report.analysis.network import Network
from service.report.drawing.album import Album, Drawing
from service.report.drawing.colours import DIVERGING, FRAME_PLACE, signed
from service.report.drawing.sheets import Scaling, grid, scaling
from service.report.subject import Section, Subject

SIDE, SMALLEST = 512, 32  # pixels of a heatmap's longer side at most; of a filter's at least
UNITS = 64  # of a dense layer that are shown as pictures, where its inputs are pixels

Floats = NDArray[np.floating]
COLOURS = {3: ("red", "green", "blue"), 1: ("grey",)}


@dataclass(frozen=True)
class Heat:
    """One picture of weights.

    Attributes:
        layer: Its name.
        what: What is shown.
        places: uint8 `[height, width]`, in the diverging palette.
        limit: The value of the full colours.
    """

    layer: str
    what: str
    places: NDArray[np.uint8]
    limit: float


def limit_of(weights: Floats) -> float:
    """The largest size of a weight: the scale is symmetric about zero. 1 where all are zero."""
    return float(np.abs(weights).max(initial=0)) or 1.0


def tiles(weights: Floats, limit: float, scaled: Scaling) -> NDArray[np.uint8]:
    """Lays out maps of weights `[N, h, w]` as tiles, all on one scale: places in the diverging palette."""
    count, height, width = weights.shape
    lies = grid(height, width, count, scaled)
    picture = np.full(
        (-(-count // lies.columns) * lies.pitch[1], lies.columns * lies.pitch[0]), FRAME_PLACE, np.uint8
    )
    shown = signed(weights, limit).repeat(scaled.grow, axis=1).repeat(scaled.grow, axis=2)
    for place, tile in enumerate(shown):
        top, left = place // lies.columns * lies.pitch[1], place % lies.columns * lies.pitch[0]
        picture[top : top + lies.tile[1], left : left + lies.tile[0]] = tile
    return picture


def strongest(weights: Floats, side: int = SIDE) -> Floats:
    """Shrinks a matrix until no side is longer than `side`: of every block the weight of the largest size, with its sign."""
    for axis in (0, 1):
        factor = -(-weights.shape[axis] // side)
        if factor > 1:
            padded = np.pad(
                weights, [(0, -weights.shape[axis] % factor) if axis == a else (0, 0) for a in (0, 1)]
            )
            blocks = (
                padded.reshape(-1, factor, padded.shape[1])
                if axis == 0
                else padded.reshape(padded.shape[0], -1, factor).swapaxes(1, 2)
            )
            weights = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)[:, 0]
    return weights


def filters_of(network: Network) -> list[Heat]:
    """The filters of the first convolution, for each of its input channels apart where these are colours, else their first."""
    first = next((tap for tap in network.convolutions if tap.kind == "Conv2D"), None)
    if first is None:
        return []
    kernel = np.asarray(first.operation.kernel)  # [h, w, in, out]
    limit, scaled = limit_of(kernel), replace(scaling(*kernel.shape[:2], smallest=SMALLEST), block=1)
    names = COLOURS.get(kernel.shape[2], (f"the first of {kernel.shape[2]} inputs",))
    return [
        Heat(first.name, name, tiles(kernel[:, :, n].transpose(2, 0, 1), limit, scaled), limit)
        for n, name in enumerate(names)
    ]


def dense_of(network: Network) -> list[Heat]:
    """The weights of every dense layer: a row for each unit; or, where they lie on pixels, a picture for each unit."""
    found = []
    for place, tap in enumerate(network.taps):
        if tap.kind != "Dense":
            continue
        kernel = np.asarray(tap.operation.kernel)  # [inputs, units]
        limit = limit_of(kernel)
        before = network.taps[place - 1].shape if place else network.shape
        if before == network.shape and kernel.shape[0] == int(np.prod(network.shape)):
            shown = kernel.T.reshape(-1, *network.shape)[:UNITS]
            scaled = replace(
                scaling(*network.shape[:2], smallest=SMALLEST, largest=max(network.shape[:2])), block=1
            )
            names = COLOURS.get(network.shape[2], ())
            found += [
                Heat(tap.name, f"{name} of every unit's pixels", tiles(shown[..., n], limit, scaled), limit)
                for n, name in enumerate(names)
            ]
        else:
            small = strongest(kernel.T)  # [units, inputs]
            grow = max(1, SMALLEST // max(small.shape[0], 1))
            places = signed(small, limit).repeat(grow, axis=0).repeat(max(1, SIDE // small.shape[1]), axis=1)
            what = f"{kernel.shape[1]} unit{'s' * (kernel.shape[1] > 1)} (down) by {kernel.shape[0]} inputs (across)"
            found.append(Heat(tap.name, what, places, limit))
    return found


def build_section(subject: Subject, album: Album) -> Section | None:
    """First filters and dense weights; None for a network that has neither."""
    groups = (("First filters", filters_of(subject.network)), ("Dense layers", dense_of(subject.network)))
    drawings = [_drawing(subject, heat) for _, heats in groups for heat in heats]
    if not drawings:
        return None
    pictures = iter(album.add_all(drawings))
    shown = [
        {"title": title, "heats": [{"heat": heat, "picture": next(pictures)} for heat in heats]}
        for title, heats in groups
        if heats
    ]
    limits = [
        {"layer": heat.layer, "what": heat.what, "limit": heat.limit} for _, heats in groups for heat in heats
    ]
    return Section("weights", "Weights", {"groups": shown}, {"limits": limits})


def _drawing(subject: Subject, heat: Heat) -> Drawing:
    words = f"Weights of {heat.layer}, {heat.what}: from -{heat.limit:.3g} (blue) to {heat.limit:.3g} (red)"
    return Drawing(
        heat.places,
        "weights",
        words,
        {"checkpoint": subject.model_digest, "layer": heat.layer},
        "png",
        DIVERGING,
    )
