"""Attention maps of a transformer: every head of some layers, and rollout through all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from service.report.analysis.attention import Attention, compute_attention
from service.report.analysis.examples import ReportExample
from service.report.analysis.network import Network
from service.report.drawing import heatmap
from service.report.drawing.album import Album, Drawing
from service.report.sections.examples import show_examples
from service.report.sections.provenance import Provenance
from service.report.sections.section import Section

MAX_LAYERS = 4  # attention layers whose heads are drawn, spread over the depth
MAX_HEADS = 12  # heads drawn per layer, the first ones
ROLLOUTS = {"rollout": "Attention rollout", "gradient_rollout": "Gradient-weighted rollout"}


def build_section(
    album: Album,
    provenance: Provenance,
    network: Network,
    examples: Sequence[ReportExample],
    classes: Sequence[str],
) -> Section | None:
    """Builds the attention maps of the examples.

    Args:
        album: Album the pictures are added to.
        provenance: Model and shard set the pictures are recorded with in the manifest.
        network: Network whose attention is shown.
        examples: Images the maps belong to.
        classes: Class names; labels are indices into them.

    Returns:
        The section; None for a network without self-attention over patches.
    """
    if not examples:
        return None
    pixels = np.stack([example.pixels for example in examples])  # [N, H, W, C]
    labels = np.array([example.predicted for example in examples])
    attention = compute_attention(network, pixels, labels)
    if attention is None:
        return None
    layers = _choose_layers(attention)
    shown = show_examples(album, provenance, examples, classes)
    views = []
    for n, example in enumerate(examples):
        rollouts = [_draw_rollout(provenance, attention, example, n, method, classes) for method in ROLLOUTS]
        heads = [_draw_heads(provenance, attention, example, n, layer) for layer in layers]
        views.append(
            {
                "shown": shown[n],
                "rollouts": dict(zip(ROLLOUTS, album.add_all(rollouts), strict=True)),
                "heads": [album.add_all(drawings) for drawings in heads],
            }
        )
    names = [attention.layers[layer] for layer in layers]
    values = {
        "examples": views,
        "layers": names,
        "rollouts": ROLLOUTS,
        "omitted": len(attention.layers) - len(layers),
        "has_class_token": bool(network.find_layer(names[0]).extra_tokens),
    }
    figures = {
        "rows": [example.row for example in examples],
        "layers": list(attention.layers),
        "classes": [classes[label] for label in labels],
        "entropy": [compute_entropy(weights) for weights in attention.heads],
    }
    return Section("attention", "Attention", values, figures, examples=shown)


def compute_entropy(heads: np.ndarray) -> float:
    """Computes the mean entropy of attention maps `[N, heads, h, w]` as a share of that of an even one.

    Returns:
        0 if every head attends to one patch, 1 if all attend to all patches alike.
    """
    flat = heads.reshape(-1, heads.shape[2] * heads.shape[3]).astype(np.float64)
    shares = flat / np.maximum(flat.sum(axis=1, keepdims=True), 1e-30)
    entropy = -(shares * np.log(np.maximum(shares, 1e-30))).sum(axis=1)
    return float(entropy.mean() / np.log(flat.shape[1]))


def _choose_layers(attention: Attention) -> list[int]:
    """Chooses some attention layers spread over the depth, the first and the last among them."""
    count = len(attention.layers)
    chosen = np.linspace(0, count - 1, min(MAX_LAYERS, count)).round().astype(int)
    return [int(layer) for layer in np.unique(chosen)]


def _draw_rollout(
    provenance: Provenance,
    attention: Attention,
    example: ReportExample,
    n: int,
    method: str,
    classes: Sequence[str],
) -> Drawing:
    values: np.ndarray = getattr(attention, method)[n]
    subject = f" for {classes[example.predicted]}" if method == "gradient_rollout" else ""
    text = f"{ROLLOUTS[method]}{subject}: {heatmap.describe_peak(values)}; {example.name}"
    origin = provenance.describe_example(example, method=method)
    return heatmap.build_drawing(values - values.min(), example.pixels.shape[:2], "attention", text, origin)


def _draw_heads(
    provenance: Provenance, attention: Attention, example: ReportExample, n: int, layer: int
) -> list[Drawing]:
    name = attention.layers[layer]
    drawings = []
    for head, values in enumerate(attention.heads[layer][n][:MAX_HEADS]):
        text = f"{name}, head {head}: {heatmap.describe_peak(values)}; {example.name}"
        origin: dict[str, Any] = provenance.describe_example(example, layer=name, head=head)
        contrast = values - values.min()  # attention is never zero, and often nearly even
        drawings.append(heatmap.build_drawing(contrast, example.pixels.shape[:2], "attention", text, origin))
    return drawings
