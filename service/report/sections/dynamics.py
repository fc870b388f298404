"""Training dynamics: weights and gradients per layer over the epochs, and layers that do not learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from service.report.analysis.dynamics import (
    LayerDynamics,
    collect_dynamics,
    find_exploding_layers,
    find_idle_layers,
    find_vanishing_layers,
    group_layers,
    summarize_group,
)
from service.report.drawing.formatting import number
from service.report.drawing.plots import Line, Plot
from service.report.sections.section import Section

ROLES = ("a", "b", "c", "d", "e", "f")
NAMED = 5  # layers that a sentence names
DEPTH_CAPTION = (
    "From the first layer on the left to the last on the right: the norm of the gradient divided by that of "
    "the weights, on a logarithmic scale. A line that falls steeply towards the left means vanishing "
    "gradients: the first layers hardly learn."
)
STAGES = 3  # epochs that are compared over the depth: the first, the middle and the last


def build_section(records: Sequence[dict[str, Any]]) -> Section | None:
    """Builds plots of the gradients over the depth of the network, and of both norms over the epochs.

    Args:
        records: Records of `service.runs.Run.layers`, of ascending epochs.

    Returns:
        The section; None for runs without records.
    """
    dynamics = collect_dynamics(records)
    if dynamics is None:
        return None
    values = {
        "summary": summarize(dynamics),
        "depth": plot_depth(dynamics),
        "charts": [plot_epochs(dynamics, "gradients"), plot_epochs(dynamics, "weights")],
        "layers": [
            {
                "name": name,
                "gradients": _ends(dynamics.gradients[row]),
                "weights": _ends(dynamics.weights[row]),
            }
            for row, name in enumerate(dynamics.layers)
        ],
        "first": dynamics.epochs[0],
        "last": dynamics.epochs[-1],
    }
    figures = {
        "epochs": list(dynamics.epochs),
        "layers": list(dynamics.layers),
        "weights": dynamics.weights.tolist(),
        "gradients": dynamics.gradients.tolist(),
        "no_gradient": find_idle_layers(dynamics),
        "vanishing": find_vanishing_layers(dynamics),
        "exploding": find_exploding_layers(dynamics),
    }
    return Section("dynamics", "Weights and gradients", values, figures)


def summarize(dynamics: LayerDynamics) -> str:
    """Names layers that receive no gradient, or whose gradients vanish or explode, in a sentence or two.

    Args:
        dynamics: Norms of the layers.
    """
    sentences = []
    idle = find_idle_layers(dynamics)
    vanishing = find_vanishing_layers(dynamics)
    exploding = find_exploding_layers(dynamics)
    if idle:
        sentences.append(f"No gradient reaches {_name(idle)}: these weights do not learn.")
    if vanishing:
        sentences.append(
            f"The gradients of {_name(vanishing)} vanish: relative to the weights, they are less than a "
            "thousandth of those of other layers."
        )
    if exploding:
        sentences.append(
            f"The gradients of {_name(exploding)} explode: at the last epoch, they are more than a hundred "
            "times what they were before."
        )
    if not sentences:
        return f"No gradients vanish or explode{_compare_extremes(dynamics)}."
    return " ".join(sentences)


def _compare_extremes(dynamics: LayerDynamics) -> str:
    """Compares the layers with the smallest and the largest gradient relative to their weights."""
    last = dynamics.relative_gradients[:, -1]
    known = np.flatnonzero(last > 0)
    if len(known) < 2:
        return ""
    smallest = known[last[known].argmin()]
    largest = known[last[known].argmax()]
    factor = number(float(last[largest] / last[smallest]), 2)
    return (
        f": at the last epoch, relative to the weights, they are largest in {dynamics.layers[largest]}, "
        f"{factor} times those of {dynamics.layers[smallest]}, where they are smallest"
    )


def plot_depth(dynamics: LayerDynamics) -> Plot:
    """Plots the gradients relative to the weights from the first to the last layer, at a few epochs.

    Args:
        dynamics: Norms of the layers.
    """
    count = len(dynamics.epochs)
    columns = np.unique(np.linspace(0, count - 1, min(STAGES, count)).round().astype(int)).tolist()
    relative = dynamics.relative_gradients
    return Plot(
        "Gradient relative to the weights",
        "layer",
        range(len(dynamics.layers)),
        tuple(
            Line(f"epoch {dynamics.epochs[column]}", _shorten(relative[:, column]), role)
            for column, role in zip(columns, ROLES, strict=False)
        ),
        ticks=dynamics.layers,
        caption=DEPTH_CAPTION,
        log=True,
    )


def plot_epochs(dynamics: LayerDynamics, kind: str) -> Plot:
    """Plots the norms of weights or gradients over the epochs, a line per layer or group of layers.

    Args:
        dynamics: Norms of the layers.
        kind: `weights` or `gradients`.
    """
    norms = {"weights": dynamics.weights, "gradients": dynamics.gradients}[kind]
    lines = tuple(
        Line(name, _shorten(summarize_group(norms[rows])), role)
        for (name, rows), role in zip(group_layers(dynamics, len(ROLES)), ROLES, strict=False)
    )
    titles = {"weights": "Norm of the weights", "gradients": "Norm of the gradient"}
    return Plot(
        titles[kind],
        "epoch",
        [float(epoch) for epoch in dynamics.epochs],
        lines,
        caption=_describe_lines(kind, len(dynamics.layers) > len(ROLES)),
        log=True,
    )


def _describe_lines(kind: str, is_grouped: bool) -> str:
    """Returns the caption of a plot over the epochs."""
    lines = "a line for each layer"
    if is_grouped:
        lines = "a line for each sixth of the layers, from input to output (geometric mean)"
    if kind == "weights":
        return (
            f"The overall size of the weights over the epochs, {lines}; logarithmic scale. Weights that do "
            "not stop growing point to a high learning rate or a missing weight decay."
        )
    return (
        f"The overall size of the gradient over the epochs, {lines}; logarithmic scale. A sudden rise means "
        "that training becomes unstable."
    )


def _shorten(norms: np.ndarray) -> list[float]:
    """Returns norms with few digits; NaN for zeros, which a logarithmic scale cannot show."""
    return [float(f"{norm:.4g}") if norm > 0 else math.nan for norm in norms]


def _ends(norms: np.ndarray) -> tuple[float, float]:
    """Returns the norms at the first and the last epoch."""
    return float(norms[0]), float(norms[-1])


def _name(layers: Sequence[str]) -> str:
    """Lists the names of some layers; of many, the first ones."""
    names = ", ".join(layers[:NAMED])
    if len(layers) > NAMED:
        names += f" and {len(layers) - NAMED} other layers"
    return names
