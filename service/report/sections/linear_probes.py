"""The distillation curve: what becomes of the picture and of its class from layer to layer.

"Information about the picture goes down, about the class goes up" (F. Chollet, 2017), measured: linear maps from every
layer's values to the class, and to the small picture itself, fitted to training images and judged on others.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from service.report.analysis.linear_probes import SIDE, Depth, distill
from service.report.drawing.album import Album
from service.report.drawing.plots import Line, Plot
from service.report.subject import Section, Subject

# images that linear maps are fitted to, and judged on; with fewer there is no curve
FITTED = 400
JUDGED = 200
FEWEST = 30


def build_section(subject: Subject, album: Album) -> Section | None:
    """The curve over the depth; None with too few images."""
    chance = np.random.default_rng(subject.options.seed)
    splits = [(subject.training, FITTED), (subject.evaluation, JUDGED)]
    alike = (
        subject.training.split == subject.evaluation.split
    )  # nothing was held out: no image is in both parts all the same
    rows = [np.sort(chance.permutation(len(images.labels))[:most]) for images, most in splits]
    if alike:
        all_rows = chance.permutation(len(subject.evaluation.labels))
        judged = min(JUDGED, len(all_rows) // 3)
        rows = [np.sort(all_rows[judged : judged + FITTED]), np.sort(all_rows[:judged])]
    if min(map(len, rows)) < FEWEST:
        return None
    images = np.concatenate(
        [images.read(part.tolist()) for (images, _), part in zip(splits, rows, strict=True)]
    )
    labels = np.concatenate([images.labels[part] for (images, _), part in zip(splits, rows, strict=True)])
    fitted = len(rows[0])
    found = distill(subject.network, images, labels, fitted)
    lines = (
        Line("class: accuracy of a linear map", [depth.label for depth in found], "a"),
        Line("picture: variance recovered", [depth.picture for depth in found], "b"),
        Line("zeros among the values", [depth.zeros for depth in found], "c"),
    )
    commonest = float(np.bincount(labels[fitted:]).max() / len(rows[1]))
    names = tuple(depth.layer for depth in found)
    plot = Plot(
        "What is left of the picture, what is known of the class",
        "layer",
        range(len(found)),
        lines,
        percent=True,
        ticks=names,
    )
    values = {
        "plot": plot,
        "fitted": fitted,
        "judged": len(rows[1]),
        "side": SIDE,
        "commonest": commonest,
        "words": told(found),
    }
    figures = {
        "fitted": fitted,
        "judged": len(rows[1]),
        "seed": subject.options.seed,
        "commonest": commonest,
        "layers": [asdict(depth) for depth in found],
    }
    return Section("distillation", "From picture to class", values, figures)


def told(found: list[Depth]) -> str:
    """The curve in a sentence: from the pixels to the deepest layer in which a linear map finds the class best."""
    first, last = found[0], found[-1]
    up, down = last.label > first.label, last.picture < first.picture
    if up and down:
        return "On its way through the layers the network forgets the picture and finds the class."
    if up:
        return "The network finds the class, but the picture is not forgotten on the way."
    return "A linear map finds the class in the pixels as well as after the last layer: the network adds nothing to it here."
