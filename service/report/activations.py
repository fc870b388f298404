"""Activations: what every layer makes of an image, one tile for each channel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from service.report.colours import SEQUENTIAL, coloured
from service.report.network import Network, Tap, Trace
from service.report.pictures import Album, Drawing, enlarged, tiled
from service.report.probes import origin_of, photos_of
from service.report.sheets import Scaling, blank, grid, levels, scaling, shades, sheet
from service.report.subject import Section, Subject

CELLS, CELL = 64, 16  # units a row; pixels a unit
FEW = 16  # so many values are written out
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


def part(subject: Subject, album: Album) -> Section | None:
    """Every layer's activations for some judged images."""
    count = (
        len(subject.probes)
        if subject.options.activation_rows is not None
        else subject.options.activation_images
    )
    probes, network = subject.probes[:count], subject.network
    if not probes:
        return None
    layers = {tap.name: subject.look.layers[tap.name] for tap in network.taps}
    photos = album.add_all(photos_of(subject)[: len(probes)])
    drawn = iter(album.add_all(_drawings(subject, probes, layers)))
    looks = []
    for n, probe in enumerate(probes):
        looks.append(
            {
                "picture": photos[n],
                "row": probe.row,
                "truth": subject.classes[probe.truth],
                "predicted": subject.classes[probe.predicted],
                "probability": probe.probability,
                "layers": [
                    _shown(tap, layers[tap.name], n, drawn, subject.options.sheets) for tap in network.taps
                ],
            }
        )
    table = [statistics(tap, layers[tap.name], len(probes)) for tap in network.taps]
    rows = [probe.row for probe in probes]
    return Section(
        "activations", "Activations", {"looks": looks, "table": table}, {"rows": rows, "layers": table}
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


def _note(tap: Tap, values: LayerValues, n: int) -> str:
    if not isinstance(values, MapValues):
        return f"{tap.shape[0]} unit{'s' if tap.shape[0] > 1 else ''}"
    height, width, channels = tap.shape
    flat = int(values.blank[n].sum())
    return f"{channels} channel{'s' if channels > 1 else ''} of {height} by {width}" + (
        f", {flat} blank" if flat else ""
    )


def _drawings(subject: Subject, probes: Any, layers: dict[str, LayerValues]) -> list[Drawing]:
    """The pictures of all layers of all probes, in order; single units have none."""
    found = []
    for n, probe in enumerate(probes):
        for tap in subject.network.taps:
            values, made_from = layers[tap.name], origin_of(subject, probe, layer=tap.name)
            stem = "".join(letter if letter.isalnum() else "-" for letter in tap.name)
            words = f"{tap.name}: {_note(tap, values, n)}"
            if isinstance(values, MapValues):
                kind = encoding(tap, subject.options.sheets)
                shown = sheet(values.tiles[n], values.blank[n], scaled(tap, subject.options.sheets))
                found.append(Drawing(shown, stem, f"{words}; {probe.name}", made_from, kind, SEQUENTIAL))
            elif tap.shape[0] > 1:
                low, high = values.values[n].min(), values.values[n].max()
                found.append(
                    Drawing(
                        strip(values.values[n]),
                        stem,
                        f"{words} from {low:.3g} to {high:.3g}; {probe.name}",
                        made_from,
                    )
                )
    return found


def _shown(tap: Tap, values: LayerValues, n: int, pictures: Any, wanted: str) -> dict[str, Any]:
    """One layer's output for image `n`: its picture, and words and numbers beside it."""
    shown = {
        "layer": tap.name,
        "kind": tap.kind,
        "note": _note(tap, values, n),
        "picture": None,
        "values": None,
        "sheet": None,
    }
    if isinstance(values, MapValues):
        about = grid(*tap.shape, scaled(tap, wanted)).for_page(values.activity[n], values.blank[n])
        return shown | {"picture": next(pictures), "sheet": about}
    few = values.values[n].tolist() if tap.shape[0] <= FEW else None
    return shown | {"picture": next(pictures) if tap.shape[0] > 1 else None, "values": few}
