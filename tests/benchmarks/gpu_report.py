"""Part f: what the report computes: class activation maps and filter patterns a second."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from gpu_lab import Lab, photos, seconds_each
from gpu_part import Checks
from gpu_results import Row

SIZES = {"small": 150, "vgg16": 224}


def checks(lab: Lab) -> Checks:
    """Maps and patterns of a small network, and on a GPU of VGG16."""
    for name in lab.pick(("small", "vgg16"), ("small",), ("small",)):
        for fast in (False, True)[: lab.pick(2, 2, 1)]:
            yield f"Grad-CAM, {name}", lambda name=name, fast=fast: maps(lab, name, fast)
            yield f"patterns, {name}", lambda name=name, fast=fast: climbed(lab, name, fast)


@lru_cache
def network(name: str, fast: bool) -> Any:
    """A network to look into, and its last convolution."""
    from report_contestants import last_convolution
    from report_contestants import network as made

    from service.report.analysis.network import Network

    model = made(name)
    return Network(model, fast=fast), last_convolution(model)


def title(name: str, fast: bool) -> str:
    """The network in words."""
    return f"{name} at {SIZES[name]}{', bfloat16' if fast else ''}"


def maps(lab: Lab, name: str, fast: bool) -> list[Row]:
    """Grad-CAM of the last convolution."""
    from service.report.analysis.gradcam import Heatmaps

    looked, layer = network(name, fast)
    images = photos(lab, lab.pick(256, 32, 4), size=(SIZES[name],) * 2)["image"]
    heatmaps = Heatmaps(looked, [layer])
    classes = np.zeros((len(images), 1), np.int32)
    rate = len(images) / seconds_each(
        lambda: heatmaps(images, classes), lab.pick(2.0, 2.0, 0.0), not lab.smallest
    )
    found = heatmaps(images[:4], classes[:4]).maps[layer, "gradcam"]
    passed = bool(np.isfinite(found).all())
    return [
        Row("f", f"Grad-CAM, {title(name, fast)}", "maps/s", **lab.column(rate), goal="finite", passed=passed)
    ]


def climbed(lab: Lab, name: str, fast: bool) -> list[Row]:
    """Filter patterns of the last convolution, with the tracing of the graph, as the report makes them for every layer."""
    from service.report.analysis.patterns import STEPS, patterns

    looked, layer = network(name, fast)
    count, steps = lab.pick(64, 16, 4), lab.pick(STEPS, STEPS, 5)
    answers = []
    rate = count / seconds_each(
        lambda: answers.append(patterns(looked, layer, range(count), steps)), 0.0, not lab.smallest
    )
    before, after = answers[0].before, answers[0].after
    passed = bool((after > before)[before > 0].mean() > 0.9) if before.any() else None
    goal = "what answers noise answers more"
    return [
        Row(
            "f",
            f"filter patterns, {title(name, fast)}, {steps} steps",
            "patterns/s",
            **lab.column(rate),
            goal=goal,
            passed=passed,
        )
    ]
