"""The page's heatmaps: what spoke for a class, laid over the images, for several classes, layers and methods."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from service.report.analysis.gradcam import METHODS
from service.report.drawing import heatmap
from service.report.drawing.album import Album, Drawing, Picture
from service.report.sections.common import origin_of, photos_of
from service.report.subject import Section, Subject

TITLES = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "layercam": "LayerCAM"}


def build_section(subject: Subject, album: Album) -> Section | None:
    """Heatmaps of the probes; None for a network without feature maps."""
    probes, maps = subject.examples, subject.forward_pass.maps
    if not maps:
        return None
    layers = list(dict.fromkeys(layer for layer, _ in maps))
    photos = album.add_all(photos_of(subject))
    keys = [
        (n, m, layer, method)
        for n, probe in enumerate(probes)
        for m, layer, method in product(range(len(probe.classes)), layers, METHODS)
    ]
    pictures = album.add_all(_drawing(subject, *key) for key in keys)
    looks = []
    for n, photograph in enumerate(photos):
        own = [(key[1:], picture) for key, picture in zip(keys, pictures, strict=True) if key[0] == n]
        looks.append(_look(subject, n, photograph, [_map(subject, n, *key, picture) for key, picture in own]))
    last = [
        maps[layers[0], method][:, m].any(axis=(1, 2))
        for method in METHODS
        for m in range(len(probes[0].classes))
    ]
    figures = {
        "rows": [probe.row for probe in probes],
        "classes": [[subject.classes[label] for label in probe.classes] for probe in probes],
        "logits": [subject.forward_pass.logits[n][probe.classes].tolist() for n, probe in enumerate(probes)],
        "layers": layers,
        "methods": list(METHODS),
        "empty_in_last_layer": 1 - float(np.mean(last)),
    }
    return Section(
        "gradcam", "Where it looks", {"looks": looks, "layers": layers, "methods": TITLES}, figures
    )


def _drawing(subject: Subject, n: int, m: int, layer: str, method: str) -> Drawing:
    probe, values = subject.examples[n], subject.forward_pass.maps[layer, method][n, m]
    words = f"{TITLES[method]} of {layer} for {subject.classes[probe.classes[m]]}: {heatmap.where(values)}; {probe.name}"
    origin = origin_of(
        subject,
        probe,
        layer=layer,
        method=method,
        limit=float(values.max()),
        **{"class": int(probe.classes[m])},
    )
    return heatmap.drawing(values, probe.pixels.shape[:2], "map", words, origin)


def _map(subject: Subject, n: int, m: int, layer: str, method: str, picture: Picture) -> dict[str, Any]:
    """One map, and when the page shows it."""
    when = {"image": str(n), "class": str(subject.examples[n].classes[m]), "layer": layer, "method": method}
    return {
        "when": when,
        "picture": picture,
        "empty": not subject.forward_pass.maps[layer, method][n, m].any(),
    }


def _look(subject: Subject, n: int, photograph: Picture, maps: list[dict[str, Any]]) -> dict[str, Any]:
    """One image with its maps; its classes by logit, the highest first."""
    probe = subject.examples[n]
    logits = subject.forward_pass.logits[n]
    classes = sorted(probe.classes.tolist(), key=lambda label: -logits[label])
    return {
        "photo": photograph,
        "row": probe.row,
        "truth": subject.classes[probe.truth],
        "predicted": subject.classes[probe.predicted],
        "probability": probe.probability,
        "classes": [
            {"key": str(label), "name": subject.classes[label], "logit": float(logits[label])}
            for label in classes
        ],
        "maps": maps,
    }
