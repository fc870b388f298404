"""Weights: filters of the first convolution and weights of dense layers, on a scale from blue to red."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.report.analysis.network import Network
from service.report.drawing.album import Album, Drawing
from service.report.drawing.colours import DIVERGING, FRAME_INDEX, quantize_signed
from service.report.drawing.sheets import TileScaling, compute_layout, compute_scaling
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section

LARGEST = 512  # largest longer side of a matrix, in pixels
SMALLEST = 32  # smallest longer side of a filter, in pixels
UNITS = 64  # largest number of units of a dense layer on pixels that are shown as pictures

Floats = NDArray[np.floating]
COLOURS = {3: ("red", "green", "blue"), 1: ("grey",)}


@dataclass(frozen=True)
class WeightMap:
    """One picture of weights.

    Attributes:
        layer: Name of the layer.
        title: Description of the weights that are shown.
        indices: uint8 `[height, width]`, indices of the diverging palette.
        limit: Absolute value that is drawn in the full colours.
    """

    layer: str
    title: str
    indices: NDArray[np.uint8]
    limit: float


def build_section(album: Album, provenance: Provenance, network: Network) -> Section | None:
    """Builds pictures of the first convolution's filters and of the dense layers' weights.

    Args:
        album: Album the pictures are added to.
        provenance: Model and shard set the pictures are recorded with in the manifest.
        network: Network whose weights are shown.

    Returns:
        The section; None for a network without such layers.
    """
    groups = {"First filters": draw_filters(network), "Dense layers": draw_dense(network)}
    maps = [weight_map for group in groups.values() for weight_map in group]
    if not maps:
        return None
    pictures = iter(album.add_all(_to_drawing(provenance, weight_map) for weight_map in maps))
    views = []
    for title, group in groups.items():
        if group:
            items = [{"map": weight_map, "picture": next(pictures)} for weight_map in group]
            views.append({"title": title, "items": items})
    limits = [
        {"layer": weight_map.layer, "what": weight_map.title, "limit": weight_map.limit}
        for weight_map in maps
    ]
    return Section("weights", "Weights", {"groups": views}, {"limits": limits})


def find_limit(weights: Floats) -> float:
    """Finds the largest absolute weight, the end of a symmetric colour scale; 1 if all are zero."""
    return float(np.abs(weights).max(initial=0)) or 1.0


def draw_tiles(weights: Floats, limit: float, layout: TileScaling) -> NDArray[np.uint8]:
    """Lays out maps of weights as tiles, all on one colour scale.

    Args:
        weights: float `[N, h, w]`.
        limit: Absolute value that is drawn in the full colours.
        layout: Enlargement of the tiles, and their number per row.

    Returns:
        uint8 `[height, width]`, indices of the diverging palette.
    """
    count, height, width = weights.shape
    cells = compute_layout(height, width, count, layout)
    rows = -(-count // cells.columns)
    pitch_x, pitch_y = cells.pitch
    tile_width, tile_height = cells.tile
    picture = np.full((rows * pitch_y, cells.columns * pitch_x), FRAME_INDEX, np.uint8)
    tiles = quantize_signed(weights, limit).repeat(layout.grow, axis=1).repeat(layout.grow, axis=2)
    for n, tile in enumerate(tiles):
        top = n // cells.columns * pitch_y
        left = n % cells.columns * pitch_x
        picture[top : top + tile_height, left : left + tile_width] = tile
    return picture


def shrink(weights: Floats, side: int = LARGEST) -> Floats:
    """Shrinks a matrix until no side is longer than `side`, keeping the strongest weight of each block.

    Args:
        weights: float `[rows, columns]`.
        side: Longest side of the result.
    """
    for axis in (0, 1):
        factor = -(-weights.shape[axis] // side)
        if factor > 1:
            weights = np.moveaxis(weights, axis, 0)  # [long, other]
            padded = np.pad(weights, [(0, -len(weights) % factor), (0, 0)])
            blocks = padded.reshape(-1, factor, weights.shape[1])  # [long / factor, factor, other]
            strongest = np.abs(blocks).argmax(axis=1, keepdims=True)
            weights = np.take_along_axis(blocks, strongest, axis=1)[:, 0]
            weights = np.moveaxis(weights, 0, axis)
    return weights


def draw_filters(network: Network) -> list[WeightMap]:
    """Draws the filters of the first convolution for each colour channel, or for the first other channel."""
    first = next((layer for layer in network.convolutions if layer.kind == "Conv2D"), None)
    if first is None:
        return []
    kernel = np.asarray(first.operation.kernel)  # [h, w, in, out]
    limit = find_limit(kernel)
    layout = replace(compute_scaling(*kernel.shape[:2], smallest=SMALLEST), block=1)
    titles = COLOURS.get(kernel.shape[2], (f"first of {kernel.shape[2]} inputs",))
    maps = []
    for n, title in enumerate(titles):
        filters = kernel[:, :, n].transpose(2, 0, 1)  # [out, h, w]
        maps.append(WeightMap(first.name, title, draw_tiles(filters, limit, layout), limit))
    return maps


def draw_dense(network: Network) -> list[WeightMap]:
    """Draws the weights of every dense layer: one row per unit, or one picture per unit on pixels."""
    maps = []
    for index, layer in enumerate(network.layers):
        if layer.kind != "Dense":
            continue
        kernel = np.asarray(layer.operation.kernel)  # [inputs, units]
        input_shape = network.layers[index - 1].shape if index else network.shape
        takes_pixels = input_shape == network.shape and kernel.shape[0] == int(np.prod(network.shape))
        if takes_pixels:
            maps += _draw_dense_on_pixels(network, layer.name, kernel)
        else:
            maps.append(_draw_matrix(layer.name, kernel))
    return maps


def _draw_dense_on_pixels(network: Network, layer: str, kernel: Floats) -> list[WeightMap]:
    """Draws one picture per unit and colour channel, of the first units; kernel `[inputs, units]`."""
    limit = find_limit(kernel)
    units = kernel.T.reshape(-1, *network.shape)[:UNITS]  # [units, H, W, C]
    height, width, channels = network.shape
    layout = replace(compute_scaling(height, width, smallest=SMALLEST, largest=max(height, width)), block=1)
    return [
        WeightMap(layer, f"{colour} pixels of every unit", draw_tiles(units[..., n], limit, layout), limit)
        for n, colour in enumerate(COLOURS.get(channels, ()))
    ]


def _draw_matrix(layer: str, kernel: Floats) -> WeightMap:
    """Draws a kernel `[inputs, units]` with one row per unit, shrunk or enlarged to a visible size."""
    limit = find_limit(kernel)
    inputs, units = kernel.shape
    small = shrink(kernel.T)  # [units, inputs]
    grow_rows = max(1, SMALLEST // max(small.shape[0], 1))
    grow_columns = max(1, LARGEST // small.shape[1])
    indices = quantize_signed(small, limit).repeat(grow_rows, axis=0).repeat(grow_columns, axis=1)
    title = f"{units:,} {'unit' if units == 1 else 'units'} (rows) by {inputs:,} inputs (columns)"
    most = math.prod(-(-size // LARGEST) for size in kernel.shape)
    if most > 1:
        title += f"; a pixel is the strongest of {most:,} weights"
    return WeightMap(layer, title, indices, limit)


def _to_drawing(provenance: Provenance, weight_map: WeightMap) -> Drawing:
    limit = weight_map.limit
    text = f"Weights of {weight_map.layer}, {weight_map.title}: from -{limit:.3g} (blue) to {limit:.3g} (red)"
    origin = {"checkpoint": provenance.model_digest, "layer": weight_map.layer}
    return Drawing(weight_map.indices, "weights", text, origin, "png", DIVERGING)
