"""Linear probes: how well a linear model recovers the class, and the image itself, from every layer.

"Information about the picture goes down, about the class goes up" (F. Chollet, 2017). To measure this, linear
models from every layer's outputs to the class, and to a small copy of the image, are fitted on training
images and tested on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from service.report.analysis.images import Images
from service.report.analysis.linear_probes import SIDE, LinearProbe, fit_linear_probes
from service.report.analysis.network import Network
from service.report.drawing.plots import Line, Plot
from service.report.sections.section import Section

FIT_IMAGES = 400
TEST_IMAGES = 200
FEWEST_IMAGES = 30  # smallest number of images to fit on, and to test on


def build_section(network: Network, training: Images, evaluation: Images, seed: int) -> Section | None:
    """Builds the curves over the depth of the network.

    Args:
        network: Network whose layers are probed.
        training: Split the probes are fitted on.
        evaluation: Split the probes are tested on; if it is the same split, disjoint images of it are used.
        seed: Seed of the choice of images.

    Returns:
        The section; None if there are too few images.
    """
    fit_rows, test_rows = select_rows(training, evaluation, seed)
    if min(len(fit_rows), len(test_rows)) < FEWEST_IMAGES:
        return None
    images = np.concatenate([training.read(fit_rows.tolist()), evaluation.read(test_rows.tolist())])
    labels = np.concatenate([training.labels[fit_rows], evaluation.labels[test_rows]])
    fit_count = len(fit_rows)
    probes = fit_linear_probes(network, images, labels, fit_count)
    baseline = float(np.bincount(labels[fit_count:]).max() / len(test_rows))
    plot = Plot(
        "Linear probes by layer",
        "layer",
        range(len(probes)),
        (
            Line("class: accuracy", [probe.accuracy for probe in probes], "a"),
            Line("image: explained variance", [probe.explained_variance for probe in probes], "b"),
            Line("sparsity (fraction of zeros)", [probe.sparsity for probe in probes], "c"),
        ),
        percent=True,
        ticks=tuple(probe.layer for probe in probes),
        caption="One point per layer, from the pixels to the logits. Accuracy: how well a linear model "
        "predicts the class from the outputs of the layer. Explained variance: how much of the image a "
        "linear model can reconstruct from them. Sparsity: the fraction of these outputs that are zero.",
    )
    values = {
        "plot": plot,
        "fit_images": fit_count,
        "test_images": len(test_rows),
        "side": SIDE,
        "baseline": baseline,
        "summary": summarize_probes(probes),
    }
    figures = {
        "fit_images": fit_count,
        "test_images": len(test_rows),
        "seed": seed,
        "majority_class_share": baseline,
        "layers": [asdict(probe) for probe in probes],
    }
    return Section("linear_probes", "Linear probes by depth", values, figures)


def select_rows(
    training: Images, evaluation: Images, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Selects rows to fit on and rows to test on, ascending; never the same image in both.

    Args:
        training: Split to fit on.
        evaluation: Split to test on.
        seed: Seed of the choice.
    """
    generator = np.random.default_rng(seed)
    fit_rows = generator.permutation(len(training.labels))[:FIT_IMAGES]
    test_rows = generator.permutation(len(evaluation.labels))[:TEST_IMAGES]
    if training.split == evaluation.split:
        rows = generator.permutation(len(evaluation.labels))
        test_count = min(TEST_IMAGES, len(rows) // 3)
        fit_rows = rows[test_count : test_count + FIT_IMAGES]
        test_rows = rows[:test_count]
    return np.sort(fit_rows), np.sort(test_rows)


def summarize_probes(probes: Sequence[LinearProbe]) -> str:
    """Summarizes the curves in a sentence, from the pixels to the deepest layer.

    Args:
        probes: Scores of the probes, the pixels first.
    """
    first = probes[0]
    last = probes[-1]
    class_improves = last.accuracy > first.accuracy
    image_fades = last.explained_variance < first.explained_variance
    if class_improves and image_fades:
        return "From layer to layer, the image is discarded and the class becomes easier to predict linearly."
    if class_improves:
        return "From layer to layer, the class becomes easier to predict linearly; the image stays intact."
    return "A linear model predicts the class as well from the pixels as from the last layer."
