"""Training dynamics: how weights and gradients of the layers develop over the epochs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

VANISHING = 1e-3  # relative gradient of a layer, as a fraction of the median of all layers
EXPLODING = 100.0  # growth of a layer's gradient from its median to the last epoch

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LayerDynamics:
    """Norms of L layers at E epochs; NaN where a layer was not trained.

    Attributes:
        epochs: Numbers of the epochs, from 1.
        layers: Paths of the layers, from the input to the output.
        weights: Norms of the weights, float64 `[L, E]`.
        gradients: Root mean squares of the norms of the gradients over the updates, float64 `[L, E]`.
    """

    epochs: tuple[int, ...]
    layers: tuple[str, ...]
    weights: Floats
    gradients: Floats

    @property
    def relative_gradients(self) -> Floats:
        """Norms of the gradients divided by those of the weights, float64 `[L, E]`."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.weights > 0, self.gradients / self.weights, np.nan)


def collect_dynamics(records: Sequence[dict[str, Any]]) -> LayerDynamics | None:
    """Collects the recorded norms.

    Args:
        records: Records of `service.runs.Run.layers`, of ascending epochs.

    Returns:
        The norms; None without records.
    """
    if not records:
        return None
    names = _align_names([list(record["layers"]) for record in records])
    layers = _order_layers(names)
    shape = (len(layers), len(records))
    weights = np.full(shape, np.nan)
    gradients = np.full(shape, np.nan)
    for column, (record, of_epoch) in enumerate(zip(records, names, strict=True)):
        for name, norms in zip(of_epoch, record["layers"].values(), strict=True):
            row = layers.index(name)
            weights[row, column] = norms["weights"]
            gradients[row, column] = norms["gradients"]
    return LayerDynamics(tuple(int(record["epoch"]) for record in records), tuple(layers), weights, gradients)


def find_idle_layers(dynamics: LayerDynamics) -> list[str]:
    """Finds layers that receive no gradient at all at the last epoch."""
    last = dynamics.gradients[:, -1]
    return [dynamics.layers[row] for row in np.flatnonzero(last == 0)]


def find_vanishing_layers(dynamics: LayerDynamics) -> list[str]:
    """Finds layers whose gradients, relative to their weights, are tiny next to those of the median layer.

    Each layer counts with the median over the epochs.
    """
    relative = _median_over_epochs(dynamics.relative_gradients)
    if np.isnan(relative).all():
        return []
    limit = VANISHING * float(np.nanmedian(relative))
    idle = find_idle_layers(dynamics)
    return [
        name
        for name, value in zip(dynamics.layers, relative.tolist(), strict=True)
        if value < limit and name not in idle
    ]


def find_exploding_layers(dynamics: LayerDynamics) -> list[str]:
    """Finds layers whose gradient at the last epoch is many times the median over the epochs."""
    medians = _median_over_epochs(dynamics.gradients)
    last = dynamics.gradients[:, -1]
    return [dynamics.layers[row] for row in np.flatnonzero(last > EXPLODING * medians) if medians[row] > 0]


def group_layers(dynamics: LayerDynamics, limit: int) -> list[tuple[str, list[int]]]:
    """Groups consecutive layers, so that a plot has few lines.

    Args:
        dynamics: Norms of the layers.
        limit: Largest number of groups.

    Returns:
        Names of the groups, and the indices of their layers.
    """
    count = len(dynamics.layers)
    if count <= limit:
        return [(name, [index]) for index, name in enumerate(dynamics.layers)]
    groups = []
    for indices in np.array_split(np.arange(count), limit):
        first, last = dynamics.layers[indices[0]], dynamics.layers[indices[-1]]
        groups.append((f"{first} … {last}", indices.tolist()))
    return groups


def summarize_group(values: Floats) -> Floats:
    """Computes the geometric mean of the norms of some layers at every epoch, without missing values.

    Args:
        values: Norms, float64 `[L, E]`.

    Returns:
        float64 `[E]`; NaN where no layer has a norm above 0.
    """
    means = np.full(values.shape[1], np.nan)
    for column, norms in enumerate(values.T):
        positive = norms[norms > 0]
        if len(positive):
            means[column] = math.exp(float(np.log(positive).mean()))
    return means


def _median_over_epochs(values: Floats) -> Floats:
    """Returns the median of every row without its missing values, float64 `[L]`; NaN for an empty row."""
    medians = np.full(len(values), np.nan)
    for row, of_layer in enumerate(values):
        known = of_layer[~np.isnan(of_layer)]
        if len(known):
            medians[row] = float(np.median(known))
    return medians


def _align_names(names: list[list[str]]) -> list[list[str]]:
    """Gives layers the names of the last epoch.

    Keras counts up the names that it makes in one process, so that a run that is resumed in the same
    process has other ones, which differ in their last number alone.
    """
    last = names[-1]
    stems = [_remove_number(name) for name in last]
    return [last if [_remove_number(name) for name in of_epoch] == stems else of_epoch for of_epoch in names]


def _remove_number(name: str) -> str:
    return re.sub(r"_\d+(?=/|$)", "", name)


def _order_layers(names: list[list[str]]) -> list[str]:
    """Orders all layers from input to output; epochs that trained more layers come first."""
    order: list[str] = []
    for of_epoch in sorted(names, key=len, reverse=True):
        for position, name in enumerate(of_epoch):
            if name in order:
                continue
            previous = [other for other in of_epoch[:position] if other in order]
            order.insert(order.index(previous[-1]) + 1 if previous else 0, name)
    return order
