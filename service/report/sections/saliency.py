"""Saliency maps: how much every pixel influences a class's logit, by three gradient-based methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from service.report.analysis.examples import ReportExample
from service.report.analysis.network import Network
from service.report.analysis.saliency import (
    COMPLETENESS_TOLERANCE,
    SMOOTHGRAD_NOISE,
    SMOOTHGRAD_SAMPLES,
    Saliency,
    compute_saliency,
)
from service.report.drawing import heatmap
from service.report.drawing.album import Album, Drawing
from service.report.drawing.colours import DIVERGING
from service.report.sections.examples import show_examples
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section

METHODS = {"gradient": "Gradient", "smooth": "SmoothGrad", "integrated": "Integrated gradients"}


def build_section(
    album: Album,
    provenance: Provenance,
    network: Network,
    examples: Sequence[ReportExample],
    classes: Sequence[str],
    seed: int,
) -> Section | None:
    """Builds three saliency maps of every example, for its most probable class.

    Args:
        album: Album the pictures are added to.
        provenance: Model and shard set the pictures are recorded with in the manifest.
        network: Network the gradients are computed with.
        examples: Images the maps belong to.
        classes: Class names; labels are indices into them.
        seed: Seed of the noise of SmoothGrad.

    Returns:
        The section; None if there are no examples.
    """
    if not examples:
        return None
    labels = np.array([example.predicted for example in examples])
    pixels = np.stack([example.pixels for example in examples])  # [N, H, W, C]
    maps = compute_saliency(network, pixels, labels, seed)
    shown = show_examples(album, provenance, examples, classes)
    drawings = [
        _draw(provenance, example, maps, n, method, classes)
        for n, example in enumerate(examples)
        for method in METHODS
    ]
    pictures = album.add_all(drawings)
    views = []
    for n, shown_example in enumerate(shown):
        pictures_of_example = pictures[n * len(METHODS) : (n + 1) * len(METHODS)]
        views.append(
            {
                "shown": shown_example,
                "maps": dict(zip(METHODS, pictures_of_example, strict=True)),
                "incomplete": float(maps.completeness_error[n]),
                "is_incomplete": bool(maps.completeness_error[n] > COMPLETENESS_TOLERANCE),
                "steps": int(maps.steps[n]),
            }
        )
    figures = {
        "rows": [example.row for example in examples],
        "classes": [classes[label] for label in labels],
        "noisy": SMOOTHGRAD_SAMPLES,
        "spread": SMOOTHGRAD_NOISE,
        "steps": maps.steps.tolist(),
        "seed": seed,
        "incomplete": maps.completeness_error.tolist(),
    }
    values = {"examples": views, "methods": METHODS, "noisy": SMOOTHGRAD_SAMPLES}
    return Section("saliency", "Saliency maps", values, figures, examples=shown)


def _draw(
    provenance: Provenance,
    example: ReportExample,
    maps: Saliency,
    n: int,
    method: str,
    classes: Sequence[str],
) -> Drawing:
    size: Any = example.pixels.shape[:2]
    text = f"{METHODS[method]} for {classes[example.predicted]}; {example.name}"
    origin = provenance.describe_example(example, method=method)
    if method == "integrated":
        values = maps.integrated_gradients[n].sum(axis=2)
        return Drawing(heatmap.quantize_signed_map(values, size), "saliency", text, origin, "map", DIVERGING)
    gradient = maps.gradient[n] if method == "gradient" else maps.smoothgrad[n]
    strongest_channel = np.abs(gradient).max(axis=2)
    return heatmap.build_drawing(strongest_channel, size, "saliency", text, origin)
