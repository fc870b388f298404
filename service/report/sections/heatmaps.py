"""Class activation heatmaps: the regions of an image that support a class, by layer and method."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from service.report.analysis.examples import ReportExample
from service.report.analysis.forward import ForwardPass
from service.report.analysis.gradcam import METHODS
from service.report.drawing import heatmap
from service.report.drawing.album import Album, Drawing, Picture
from service.report.sections.provenance import Provenance, draw_examples
from service.report.sections.section import Section

TITLES = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "layercam": "LayerCAM"}


class _Key(NamedTuple):
    """Identifies a heatmap: index of the example, index of the class in the example, layer and method."""

    example: int
    column: int
    layer: str
    method: str


def build_section(
    album: Album,
    provenance: Provenance,
    examples: Sequence[ReportExample],
    forward_pass: ForwardPass,
    classes: Sequence[str],
) -> Section | None:
    """Builds the heatmaps of the examples.

    Args:
        album: Album the pictures are added to.
        provenance: Model and shard set the pictures are recorded with in the manifest.
        examples: Images the heatmaps belong to.
        forward_pass: Outputs of the network for the examples, with their heatmaps.
        classes: Class names; labels are indices into them.

    Returns:
        The section; None for a network without feature maps.
    """
    maps = forward_pass.heatmaps
    if not maps:
        return None
    layers = list(dict.fromkeys(layer for layer, _ in maps))
    photos = album.add_all(draw_examples(examples, provenance))
    keys = [
        _Key(n, column, layer, method)
        for n, example in enumerate(examples)
        for column, layer, method in product(range(len(example.classes)), layers, METHODS)
    ]
    pictures = album.add_all(_draw(provenance, examples, forward_pass, classes, key) for key in keys)
    pictures_by_key = dict(zip(keys, pictures, strict=True))
    views = []
    for n, (example, photo) in enumerate(zip(examples, photos, strict=True)):
        views.append(
            {
                "photo": photo,
                "row": example.row,
                "truth": classes[example.truth],
                "predicted": classes[example.predicted],
                "probability": example.probability,
                "classes": _list_classes(example, forward_pass.logits[n], classes),
                "maps": [
                    _describe_map(example, forward_pass, key, picture)
                    for key, picture in pictures_by_key.items()
                    if key.example == n
                ],
            }
        )
    figures = {
        "rows": [example.row for example in examples],
        "classes": [[classes[label] for label in example.classes] for example in examples],
        "probabilities": [
            _compute_probabilities(forward_pass.logits[n])[example.classes].tolist()
            for n, example in enumerate(examples)
        ],
        "layers": layers,
        "methods": list(METHODS),
        "empty_in_last_layer": _compute_empty_share(forward_pass, layers[0]),
    }
    values = {"examples": views, "layers": layers, "methods": TITLES}
    return Section("gradcam", "Class activation heatmaps", values, figures)


def _compute_empty_share(forward_pass: ForwardPass, layer: str) -> float:
    """Computes the share of a layer's heatmaps that are zero everywhere, over all methods and classes."""
    is_filled = [forward_pass.heatmaps[layer, method].any(axis=(2, 3)) for method in METHODS]  # each [N, M]
    return 1 - float(np.mean(is_filled))


def _draw(
    provenance: Provenance,
    examples: Sequence[ReportExample],
    forward_pass: ForwardPass,
    classes: Sequence[str],
    key: _Key,
) -> Drawing:
    example = examples[key.example]
    label = int(example.classes[key.column])
    values = forward_pass.heatmaps[key.layer, key.method][key.example, key.column]
    peak = heatmap.describe_peak(values)
    text = f"{TITLES[key.method]} of {key.layer} for {classes[label]}: {peak}; {example.name}"
    origin = provenance.describe_example(
        example,
        layer=key.layer,
        method=key.method,
        limit=float(values.max()),
        **{"class": label},
    )
    return heatmap.build_drawing(values, example.pixels.shape[:2], "map", text, origin)


def _describe_map(
    example: ReportExample, forward_pass: ForwardPass, key: _Key, picture: Picture
) -> dict[str, Any]:
    """Returns one heatmap, and the state of the page's controls in which it is shown."""
    when = {
        "image": str(key.example),
        "class": str(example.classes[key.column]),
        "layer": key.layer,
        "method": key.method,
    }
    values = forward_pass.heatmaps[key.layer, key.method][key.example, key.column]
    return {"when": when, "picture": picture, "empty": not values.any()}


def _list_classes(example: ReportExample, logits: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the classes of an example that have heatmaps, the most probable one first."""
    probabilities = _compute_probabilities(logits)
    labels = sorted(example.classes.tolist(), key=lambda label: -logits[label])
    return [
        {"key": str(label), "name": classes[label], "probability": float(probabilities[label])}
        for label in labels
    ]


def _compute_probabilities(logits: np.ndarray) -> np.ndarray:
    """Computes the softmax of the logits of one image, `[K]` to float64 `[K]`."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(exponentials / exponentials.sum())
