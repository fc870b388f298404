"""Activations: what every layer makes of an image, one tile for each channel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from service.report.analysis.network import Network, Tap, Trace
from service.report.drawing.album import enlarged, tiled
from service.report.drawing.colours import coloured
from service.report.drawing.sheets import Scaling, blank, grid, levels, scaling, shades

# units a row; pixels a unit
CELLS = 64


CELL = 16


WEBP_SIDE = 16_383  # pixels


SMALL_MAPS = 1 << 17  # values: layers that have fewer are stored without loss


class MapValues(NamedTuple):
    """What a layer with feature maps gave for N images.

    Attributes:
        tiles: uint8 `[N, h, w, C]`, places in a palette, see `sheets.shades`.
        activity: float32 `[N, C]`, the mean of what lies above zero.
        blank: bool `[N, C]`, see `sheets.blank`.
        zeros: float32 `[N]`, the share of zeros.
    """

    tiles: Any
    activity: Any
    blank: Any
    zeros: Any


class UnitValues(NamedTuple):
    """What a dense layer gave for N images.

    Attributes:
        values: float32 `[N, units]`.
        zeros: float32 `[N]`, the share of zeros.
    """

    values: Any
    zeros: Any


LayerValues = MapValues | UnitValues


def layer_values(network: Network, trace: Trace) -> dict[str, LayerValues]:
    """What all layers gave for a batch, by name; inside the graph that runs it."""
    return {tap.name: _layer(tap, tf.cast(trace.outputs[tap.name], tf.float32)) for tap in network.taps}


def activations(network: Network, images: np.ndarray) -> dict[str, LayerValues]:
    """What every layer of a network makes of images `[N, H, W, C]`, 0 to 255, by name; arrays of NumPy."""
    graph = network.compiled(lambda x: layer_values(network, network.run(x)))
    found: dict[str, LayerValues] = tf.nest.map_structure(lambda t: t.numpy(), graph(images))
    return {tap.name: found[tap.name] for tap in network.taps}


def _layer(tap: Tap, values: tf.Tensor) -> LayerValues:
    zeros = tf.reduce_mean(tf.cast(values == 0, tf.float32), axis=range(1, values.ndim))
    if not tap.is_map:
        return UnitValues(values, zeros)
    tiles = shades(levels(values), scaling(*tap.shape[:2]).shrink)
    return MapValues(tiles, tf.reduce_mean(tf.nn.relu(values), axis=(1, 2)), blank(values), zeros)


def scaled(tap: Tap, wanted: str = "auto") -> Scaling:
    """How the maps of a layer become tiles of a sheet in the format wanted."""
    return (
        replace(scaling(*tap.shape[:2]), block=1)
        if encoding(tap, wanted) == "png"
        else scaling(*tap.shape[:2])
    )


def strip(values: np.ndarray) -> np.ndarray:
    """Draws the units of a dense layer as cells, 64 a row, brought to mean 128 and deviation 64.

    Args:
        values: float `[units]`.

    Returns:
        uint8 `[height, width, 3]`.
    """
    cells = (
        np.rint(levels(tf.constant(values, tf.float32)[None, :, None, None]).numpy())
        .astype(np.uint8)
        .reshape(-1, 1, 1)
    )
    return tiled(enlarged(coloured(cells), CELL), CELLS)


def encoding(tap: Tap, wanted: str) -> str:
    """The format of a layer's sheets; maps drawn larger than they are, and few of them, stay without loss, which is also smaller."""
    if wanted == "auto":
        return "png" if scaling(*tap.shape[:2]).grow > 1 or np.prod(tap.shape) < SMALL_MAPS else "jpeg"
    lies = grid(*tap.shape, scaling(*tap.shape[:2]))
    return (
        "png" if wanted == "webp" and -(-lies.count // lies.columns) * lies.pitch[1] > WEBP_SIDE else wanted
    )


def statistics(tap: Tap, values: LayerValues, count: int) -> dict[str, Any]:
    """Shape, share of blank channels (None for dense layers) and share of zeros, over the first `count` images."""
    return {
        "layer": tap.name,
        "kind": tap.kind,
        "shape": list(tap.shape),
        "blank_channels": float(values.blank[:count].mean()) if isinstance(values, MapValues) else None,
        "zeros": float(values.zeros[:count].mean()),
    }
