"""Part f: measures the report's class activation maps and filter patterns."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from gpu_context import CheckContext, load_photos, measure_seconds
from gpu_part import Checks
from gpu_results import Row

SIZES = {"small": 150, "vgg16": 224}


def list_checks(context: CheckContext) -> Checks:
    """Yields heatmaps and patterns of a small network, and on a GPU of VGG16."""
    precisions = context.choose((False, True), (False, True), (False,))
    for name in context.choose(("small", "vgg16"), ("small",), ("small",)):
        for fast in precisions:
            yield f"Grad-CAM, {name}", lambda name=name, fast=fast: measure_heatmaps(context, name, fast)
            yield f"patterns, {name}", lambda name=name, fast=fast: measure_patterns(context, name, fast)


@lru_cache
def load_network(name: str, fast: bool) -> tuple[Any, str]:
    """Returns a network for analysis, and the name of its last convolution."""
    from report_candidates import build_network, find_last_convolution

    from service.report.analysis.network import Network

    model = build_network(name)
    return Network(model, fast=fast), find_last_convolution(model)


def format_title(name: str, fast: bool) -> str:
    """Describes network, image size and precision."""
    return f"{name} at {SIZES[name]}{', bfloat16' if fast else ''}"


def measure_heatmaps(context: CheckContext, name: str, fast: bool) -> list[Row]:
    """Measures Grad-CAM of the last convolution."""
    from service.report.analysis.gradcam import CamExtractor

    network, layer = load_network(name, fast)
    count = context.choose(256, 32, 4)
    images = load_photos(context, count, size=(SIZES[name], SIZES[name]))["image"]
    classes = np.zeros((count, 1), np.int32)
    extractor = CamExtractor(network, [layer])
    minimum = context.choose(2.0, 2.0, 0.0)
    seconds = measure_seconds(lambda: extractor(images, classes), minimum, warm_up=not context.smallest)
    heatmaps = extractor(images[:4], classes[:4]).maps[layer, "gradcam"]
    return [
        Row(
            "f",
            f"Grad-CAM, {format_title(name, fast)}",
            "maps/s",
            **context.as_column(count / seconds),
            goal="finite",
            passed=bool(np.isfinite(heatmaps).all()),
        )
    ]


def measure_patterns(context: CheckContext, name: str, fast: bool) -> list[Row]:
    """Measures filter patterns of the last convolution, including the tracing that every layer needs."""
    from service.report.analysis.patterns import STEPS, compute_filter_patterns

    network, layer = load_network(name, fast)
    count = context.choose(64, 16, 4)
    steps = context.choose(STEPS, STEPS, 5)
    results = []

    def compute() -> None:
        results.append(compute_filter_patterns(network, layer, range(count), steps))

    seconds = measure_seconds(compute, 0.0, warm_up=not context.smallest)
    initial = results[0].initial_activation
    final = results[0].final_activation
    is_active = initial > 0
    passed = None
    if is_active.any():
        passed = bool((final > initial)[is_active].mean() > 0.9)
    return [
        Row(
            "f",
            f"filter patterns, {format_title(name, fast)}, {steps} steps",
            "patterns/s",
            **context.as_column(count / seconds),
            goal="filters that respond to noise respond more",
            passed=passed,
        )
    ]
