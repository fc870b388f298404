"""Sanity checks of single images: what a heatmap looks like with shuffled weights, and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from service.report.analysis.examples import ReportExample
from service.report.analysis.gradcam import CamExtractor
from service.report.analysis.network import Network
from service.report.analysis.sanity import (
    RANDOMIZATIONS,
    compute_curves,
    compute_maps,
    compute_shuffled_maps,
    correlate,
    correlate_with_shuffled,
)
from service.report.drawing import heatmap
from service.report.drawing.album import Album, Drawing
from service.report.drawing.colours import DIVERGING
from service.report.sections.examples import show_examples
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section


def build_section(
    album: Album,
    provenance: Provenance,
    network: Network,
    examples: Sequence[ReportExample],
    classes: Sequence[str],
    seed: int,
) -> Section | None:
    """Builds the sanity checks of Grad-CAM of the last feature map for a few images, without a verdict.

    Args:
        album: Album the pictures are added to.
        provenance: Model and images the pictures are recorded with in the manifest.
        network: Network whose heatmaps are tested.
        examples: Images to test.
        classes: Class names; labels are indices into them.
        seed: Seed of the shuffled weights and of the random orders.

    Returns:
        The section; None for a network without feature maps.
    """
    if network.last_feature_map is None or not examples:
        return None
    layer = network.last_feature_map.name
    pixels = np.stack([example.pixels for example in examples])  # [N, H, W, C]
    predicted = np.array([example.predicted for example in examples])
    extractor = CamExtractor(network, [layer], ["signed"], classes=2)
    explained = np.stack([predicted, _find_second_classes(network, pixels, predicted)], axis=1)  # [N, 2]
    maps = compute_maps(extractor, pixels, explained)  # [N, 2, h, w]
    shuffled = compute_shuffled_maps(extractor, pixels, explained, seed)[:, :, 0]  # [draws, N, h, w]
    with_shuffled = correlate_with_shuffled(maps[:, 0], shuffled)
    with_second = None if network.has_one_unit else correlate(maps[:, 0], maps[:, 1])
    by_map, by_chance = compute_curves(network, pixels, predicted, maps[:, 0], seed)
    deletion, insertion = by_map.compute_areas()
    random_deletion, random_insertion = by_chance.compute_areas()

    shown = show_examples(album, provenance, examples, classes)
    pictures = album.add_all(
        _draw(provenance, example, layer, values, has_shuffled_weights)
        for example, own, other in zip(examples, maps[:, 0], shuffled[0], strict=True)
        for values, has_shuffled_weights in ((own, False), (other, True))
    )
    views: list[dict[str, Any]] = []
    for n, example in enumerate(shown):
        views.append(
            {
                "shown": example,
                "map": pictures[2 * n],
                "shuffled": pictures[2 * n + 1],
                "with_shuffled": float(with_shuffled[n]),
                "with_second": None if with_second is None else float(with_second[n]),
                "deletion": float(deletion[n]),
                "random_deletion": float(random_deletion[n]),
                "insertion": float(insertion[n]),
                "random_insertion": float(random_insertion[n]),
            }
        )
    values = {"examples": views, "layer": layer, "randomizations": RANDOMIZATIONS}
    figures = {
        "images": [
            {"image": view["shown"].title}
            | {key: value for key, value in view.items() if isinstance(value, float)}
            for view in views
        ],
        "layer": layer,
        "seed": seed,
    }
    return Section("image_checks", "Heatmap sanity checks", values, figures, examples=shown)


def _find_second_classes(network: Network, pixels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Finds the most probable class of every image other than the predicted one, int `[N]`."""
    logits = network.compile_graph(lambda x: network.run(x).logits)(pixels).numpy()  # [N, K]
    logits[np.arange(len(logits)), predicted] = -np.inf
    return np.asarray(logits.argmax(axis=1))


def _draw(
    provenance: Provenance, example: ReportExample, layer: str, values: np.ndarray, has_shuffled_weights: bool
) -> Drawing:
    weights = " with shuffled weights" if has_shuffled_weights else ""
    peak = heatmap.describe_peak(np.maximum(values, 0))
    text = f"Signed Grad-CAM of {layer}{weights}: {peak}; {example.name}"
    parameters: dict[str, Any] = {"layer": layer, "method": "signed", "shuffled": has_shuffled_weights}
    origin = provenance.describe_example(example, **parameters)
    size: Any = example.pixels.shape[:2]
    return Drawing(heatmap.quantize_signed_map(values, size), "check", text, origin, "map", DIVERGING)
