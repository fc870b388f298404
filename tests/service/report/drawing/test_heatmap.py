"""Heatmaps as pictures: values keep their position, and the alternative text names it."""

from __future__ import annotations

import re
from importlib.resources import files

import numpy as np
import pytest

from service.report.drawing import heatmap
from service.report.drawing.colours import DIVERGING, SEQUENTIAL


def test_a_heatmap_is_bright_where_its_values_are_high():
    values = np.zeros((4, 2), np.float32)
    values[0, 1] = 2
    indices = heatmap.quantize_heatmap(values, (4, 2))
    assert indices.shape == (96, 48)
    assert (indices[:12, 36:] == 253).all()  # nothing is extrapolated beyond the centre of an outermost cell
    assert (indices[48:] == 0).all()
    assert (indices[:12, :12] == 0).all()


def test_a_shared_limit_darkens_a_heatmap():
    values = np.zeros((4, 2), np.float32)
    values[0, 1] = 2
    np.testing.assert_array_equal(heatmap.quantize_heatmap(values, (4, 2), limit=4.0)[:12, 36:], 126)


def test_a_heatmap_of_zeros_is_dark():
    assert not heatmap.quantize_heatmap(np.zeros((2, 2), np.float32), (9, 9)).any()


@pytest.mark.parametrize(
    ("position", "text"),
    [
        ((0, 1), "brightest in the upper right"),
        ((3, 1), "brightest in the lower right"),
        ((None, None), "empty"),
    ],
)
def test_the_text_names_the_brightest_part(position, text):
    values = np.zeros((4, 2), np.float32)
    if position != (None, None):
        values[position] = 2
    assert heatmap.describe_peak(values) == text


def test_the_text_of_a_peak_in_the_middle_says_centre():
    assert heatmap.describe_peak(np.array([[0], [1], [0]])) == "brightest in the centre"


@pytest.mark.parametrize(("scale", "shades"), [("heat", SEQUENTIAL[:254]), ("signed", DIVERGING[:253])])
def test_the_colour_bar_has_the_colours_of_the_maps(scale: str, shades: np.ndarray):
    css = files("service.report").joinpath("html", "page.css").read_text()
    gradient = re.search(rf"\.scale\.{scale} {{ background: linear-gradient\(90deg, ([^)]*)\)", css)
    assert gradient is not None
    stops = [[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in gradient[1].split(", ")]
    places = np.linspace(0, len(shades) - 1, len(stops)).round().astype(int)
    np.testing.assert_allclose(stops, shades[places], atol=2)
