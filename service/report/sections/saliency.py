"""Which pixels an answer hangs on: gradients, SmoothGrad and integrated gradients of a class's logit by the pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

from service.report.analysis.saliency import NOISY, SPREAD, STEPS, Saliency, saliency
from service.report.drawing import heatmap
from service.report.drawing.album import Album, Drawing
from service.report.drawing.colours import DIVERGING
from service.report.sections.common import origin_of, photos_of
from service.report.subject import Section, Subject

METHODS = {"gradient": "Gradient", "smooth": "SmoothGrad", "integrated": "Integrated gradients"}


def build_section(subject: Subject, album: Album) -> Section | None:
    """The three maps of every probe for its most probable class."""
    probes = subject.examples
    if not probes:
        return None
    classes = np.array([probe.predicted for probe in probes])
    found = saliency(
        subject.network, np.stack([probe.pixels for probe in probes]), classes, subject.options.seed
    )
    photos = album.add_all(photos_of(subject))
    pictures = album.add_all(
        _drawing(subject, found, n, method) for n in range(len(probes)) for method in METHODS
    )
    looks = [
        {
            "photo": photos[n],
            "row": probe.row,
            "truth": subject.classes[probe.truth],
            "predicted": subject.classes[probe.predicted],
            "maps": list(
                zip(METHODS.values(), pictures[n * len(METHODS) : (n + 1) * len(METHODS)], strict=True)
            ),
            "incomplete": float(found.incomplete[n]),
        }
        for n, probe in enumerate(probes)
    ]
    figures = {
        "rows": [probe.row for probe in probes],
        "classes": [subject.classes[label] for label in classes],
        "noisy": NOISY,
        "spread": SPREAD,
        "steps": STEPS,
        "seed": subject.options.seed,
        "incomplete": found.incomplete.tolist(),
    }
    return Section(
        "saliency", "Which pixels count", {"looks": looks, "noisy": NOISY, "steps": STEPS}, figures
    )


def _drawing(subject: Subject, found: Saliency, n: int, method: str) -> Drawing:
    probe = subject.examples[n]
    size: Any = probe.pixels.shape[:2]
    words = f"{METHODS[method]} for {subject.classes[probe.predicted]}; {probe.name}"
    origin = origin_of(subject, probe, method=method)
    if method == "integrated":
        return Drawing(
            heatmap.diverging(found.integrated[n].sum(axis=2), size),
            "saliency",
            words,
            origin,
            "png",
            DIVERGING,
        )
    strongest = np.abs(found.gradient[n] if method == "gradient" else found.smooth[n]).max(axis=2)
    return heatmap.drawing(strongest, size, "saliency", words, origin)
