"""Class activation heatmaps: the regions of an image that support a class, by layer and method."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from service.report.analysis.examples import MAX_ALL_CLASSES, ReportExample
from service.report.analysis.forward import ForwardPass
from service.report.analysis.gradcam import METHODS
from service.report.drawing import heatmap
from service.report.drawing.album import Album, Drawing, Picture
from service.report.sections.examples import show_examples
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section

TITLES = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "layercam": "LayerCAM"}
PREDICTED = "predicted"  # value of the page's control that stands for the predicted class of every image
RANKS = ("predicted class", "second most probable class", "third most probable class")


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
    shown = show_examples(album, provenance, examples, classes)
    keys = [
        _Key(n, column, layer, method)
        for n, example in enumerate(examples)
        for column, layer, method in product(range(len(example.classes)), layers, METHODS)
    ]
    pictures = album.add_all(_draw(provenance, examples, forward_pass, classes, key) for key in keys)
    pictures_by_key = dict(zip(keys, pictures, strict=True))
    views = []
    for n, example in enumerate(examples):
        probabilities = _compute_probabilities(forward_pass.logits[n])
        views.append(
            {
                "shown": shown[n],
                "maps": [
                    _describe_map(example, forward_pass, key, len(classes), picture)
                    for key, picture in pictures_by_key.items()
                    if key.example == n
                ],
                "classes": [
                    {
                        "name": classes[label],
                        "probability": float(probabilities[label]),
                        "when": {"class": _list_class_keys(example, column, len(classes))},
                    }
                    for column, label in enumerate(example.classes)
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
    values = {
        "examples": views,
        "classes": list_class_choices(examples, classes),
        "layers": layers,
        "methods": TITLES,
    }
    return Section("gradcam", "Class activation heatmaps", values, figures, examples=shown)


def list_class_choices(examples: Sequence[ReportExample], classes: Sequence[str]) -> dict[str, str]:
    """Lists the values of the page's control for the class, one control for all images.

    Args:
        examples: Images the heatmaps belong to.
        classes: Class names; labels are indices into them.

    Returns:
        Text by value: of few classes the predicted one and every name; of many the ranks by probability.
    """
    if len(classes) <= MAX_ALL_CLASSES:
        return {PREDICTED: RANKS[0]} | {str(label): name for label, name in enumerate(classes)}
    choices = {str(rank): text for rank, text in enumerate(RANKS)}
    if any(example.truth is not None for example in examples):
        choices[str(len(RANKS) - 1)] += ", or true class"  # see `choose_classes`
    return choices


def _list_class_keys(example: ReportExample, column: int, class_count: int) -> list[str]:
    """Lists the values of the class control for which a class of an example is shown."""
    if class_count > MAX_ALL_CLASSES:
        return [str(column)]
    label = int(example.classes[column])
    return [PREDICTED, str(label)] if label == example.predicted else [str(label)]


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
    example: ReportExample, forward_pass: ForwardPass, key: _Key, class_count: int, picture: Picture
) -> dict[str, Any]:
    """Returns one heatmap, and the state of the page's controls in which it is shown."""
    when = {
        "class": _list_class_keys(example, key.column, class_count),
        "layer": key.layer,
        "method": key.method,
    }
    values = forward_pass.heatmaps[key.layer, key.method][key.example, key.column]
    return {
        "when": when,
        "label": int(example.classes[key.column]),
        "picture": picture,
        "is_empty": not values.any(),
    }


def _compute_probabilities(logits: np.ndarray) -> np.ndarray:
    """Computes the softmax of the logits of one image, `[K]` to float64 `[K]`."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(exponentials / exponentials.sum())
