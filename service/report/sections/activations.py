"""Activations: what every layer makes of an image, one tile for each channel."""

from __future__ import annotations

from typing import Any

from service.report.analysis.activations import (
    LayerValues,
    MapValues,
    encoding,
    scaled,
    statistics,
    strip,
)
from service.report.analysis.network import Tap
from service.report.drawing.album import Album, Drawing
from service.report.drawing.colours import SEQUENTIAL
from service.report.drawing.sheets import grid, sheet
from service.report.sections.common import origin_of, photos_of
from service.report.subject import Section, Subject

FEW = 16  # so many values are written out


def build_section(subject: Subject, album: Album) -> Section | None:
    """Every layer's activations for some judged images."""
    count = (
        len(subject.examples)
        if subject.options.activation_rows is not None
        else subject.options.activation_images
    )
    probes, network = subject.examples[:count], subject.network
    if not probes:
        return None
    layers = {tap.name: subject.forward_pass.layers[tap.name] for tap in network.taps}
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
