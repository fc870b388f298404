"""Weights and gradients per layer: layers that do not learn are named; many layers stay legible."""

from __future__ import annotations

import math

import numpy as np
import pytest

from service.report.analysis.dynamics import collect_dynamics, group_layers, summarize_group
from service.report.sections.dynamics import build_section, plot_depth, plot_epochs, summarize


def record(epoch: int, **gradients: float) -> dict:
    layers = {name: {"weights": 2.0, "gradients": gradient} for name, gradient in gradients.items()}
    return {"epoch": epoch, "layers": layers}


def test_healthy_layers_are_not_accused() -> None:
    records = [record(epoch, first=0.01 * epoch, second=0.1, head=1.0) for epoch in (1, 2, 3)]
    dynamics = collect_dynamics(records)
    assert summarize(dynamics) == (
        "No gradients vanish or explode: at the last epoch, relative to the weights, they are largest in "
        "head, 33 times those of first, where they are smallest."
    )
    np.testing.assert_allclose(dynamics.relative_gradients[:, 0], [0.005, 0.05, 0.5])
    plot = plot_depth(dynamics)
    assert [line.name for line in plot.lines] == ["epoch 1", "epoch 2", "epoch 3"]
    assert plot.ticks == ("first", "second", "head")
    assert plot.lines[2].values == [0.015, 0.05, 0.5]
    assert plot.data()["log"] is True


def test_layers_whose_gradients_vanish_explode_or_are_missing_are_named() -> None:
    records = [record(epoch, a=1e-6, b=0.0, c=1.0, d=2.0, e=1.0) for epoch in (1, 2)]
    records.append(record(3, a=1e-6, b=0.0, c=1.0, d=300.0, e=1.0))
    section = build_section(records)
    assert section.figures["vanishing"] == ["a"]
    assert section.figures["no_gradient"] == ["b"]
    assert section.figures["exploding"] == ["d"]
    assert "No gradient reaches b" in section.values["summary"]
    assert "The gradients of a vanish" in section.values["summary"]
    assert "The gradients of d explode" in section.values["summary"]
    assert math.isnan(section.values["depth"].lines[0].values[1])  # a logarithm has no zero


def test_layers_that_are_trained_later_are_in_the_order_of_the_network() -> None:
    dynamics = collect_dynamics([record(1, head=1.0), record(2, first=0.5, second=0.7, head=0.9)])
    assert dynamics.layers == ("first", "second", "head")
    np.testing.assert_array_equal(dynamics.gradients[:, 0], [np.nan, np.nan, 1.0])
    assert "weights" in build_section([record(1, head=1.0)]).figures


def test_names_that_keras_has_counted_up_are_one_layer() -> None:
    dynamics = collect_dynamics([record(1, dense=1.0, dense_1=2.0), record(2, dense_2=3.0, dense_3=4.0)])
    assert dynamics.layers == ("dense_2", "dense_3")
    np.testing.assert_array_equal(dynamics.gradients, [[1, 3], [2, 4]])


def test_many_layers_are_grouped_in_order() -> None:
    names = [f"layer{index}" for index in range(50)]
    dynamics = collect_dynamics(
        [record(1, **dict.fromkeys(names, 0.5)), record(2, **dict.fromkeys(names, 0.25))]
    )
    groups = group_layers(dynamics, 6)
    assert len(groups) == 6
    assert [index for _, indices in groups for index in indices] == list(range(50))
    assert groups[0][0] == "layer0 … layer8"
    plot = plot_epochs(dynamics, "gradients")
    assert plot.lines[5].values == [0.5, 0.25]
    assert summarize_group(np.array([[1.0, 0.0], [100.0, np.nan]])) == pytest.approx(
        [10.0, np.nan], nan_ok=True
    )


def test_runs_without_records_have_no_section() -> None:
    assert build_section([]) is None
