"""Curves: points stand where their values say, and the best epoch and the gap are marked."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from service.report.curves import Chart, best_epoch, chance_level, column, draw, ticks


def shapes(svg: str, tag: str, kind: str) -> list[ElementTree.Element]:
    return [e for e in ElementTree.fromstring(svg).iter(tag) if e.get("class") == kind]


def points(svg: str, kind: str) -> list[tuple[float, float]]:
    (path,) = (e for e in shapes(svg, "path", kind) if "h18" not in e.get("d", ""))
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+) ([\d.]+)", path.get("d", ""))]


def tick_labels(svg: str) -> dict[str, tuple[float, float]]:
    return {e.text or "": (float(e.get("x", 0)), float(e.get("y", 0)) - 4) for e in shapes(svg, "text", "tick")}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.5, 1.0, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        (0.47, 0.98, [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        (0.03, 0.69, [0, 0.2, 0.4, 0.6, 0.8]),
        (0, 6, [0, 1, 2, 3, 4, 5, 6]),
        (0.3, 0.3, [0.3, 0.31]),
        (0, 0, [0, 0.1]),
        (120, 980, [0, 200, 400, 600, 800, 1000]),
    ],
)
def test_ticks(low, high, expected):
    found = ticks(low, high)
    assert found == expected
    assert len(found) <= 7


@pytest.mark.parametrize("high", [0.013, 0.7, 1.0, 3.3, 47.0, 912.5])
@pytest.mark.parametrize("low", [0.0, 0.01, -2.4])
def test_ticks_enclose_what_they_measure(low, high):
    found = ticks(low, high)
    assert found[0] <= low + 1e-9
    assert found[-1] >= high - 1e-9
    assert 2 <= len(found) <= 7


def test_values_stand_where_the_axes_say():
    svg = draw(Chart("Accuracy", [0.5, 0.75, 1.0], [0.5, 0.6, 0.7], percent=True))
    labels = tick_labels(svg)
    (x0, y0), (x1, y1), (x2, y2) = points(svg, "training")
    assert y0 == pytest.approx(labels["50%"][1], abs=0.1)
    assert y2 == pytest.approx(labels["100%"][1], abs=0.1)
    assert y0 > y1 > y2  # up is better
    assert (x0, x1, x2) == pytest.approx([labels[n][0] for n in "123"], abs=0.1)
    assert points(svg, "validation")[2][1] == pytest.approx(labels["70%"][1], abs=0.1)


def test_the_best_epoch_and_the_gap_are_marked():
    svg = draw(Chart("Accuracy", [0.5, 0.75, 1.0], [0.5, 0.7, 0.6], percent=True, best=1))
    (bracket,), (line,) = shapes(svg, "line", "bracket"), shapes(svg, "line", "best")
    training, validation = points(svg, "training")[1], points(svg, "validation")[1]
    assert float(line.get("x1")) == float(bracket.get("x1")) == training[0]
    assert (float(bracket.get("y1")), float(bracket.get("y2"))) == (training[1], validation[1])
    assert "best epoch 2" in svg
    assert "gap 5.0 points" in svg


def test_a_gap_of_losses_is_no_percentage():
    assert "gap 0.250" in draw(Chart("Loss", [0.5, 0.25], [0.5, 0.5], best=1))


def test_the_area_between_the_curves_goes_there_and_back():
    svg = draw(Chart("Loss", [3.0, 1.0], [3.0, 2.0]))
    (area,) = shapes(svg, "polygon", "gap")
    corners = [tuple(map(float, pair.split(","))) for pair in area.get("points", "").split()]
    assert corners == [*points(svg, "training"), *reversed(points(svg, "validation"))]


def test_chance_is_a_line_and_lies_within_the_axes():
    svg = draw(Chart("Accuracy", [0.8, 0.9], [0.8, 0.85], percent=True, level=0.5))
    (level,) = shapes(svg, "line", "level")
    assert float(level.get("y1")) == pytest.approx(tick_labels(svg)["50%"][1], abs=0.1)


def test_values_that_are_no_numbers_break_the_line():
    svg = draw(Chart("Loss", [3.0, math.nan, 1.0, math.inf, 2.0], best=1))
    (path,) = (e.get("d", "") for e in shapes(svg, "path", "training") if "h18" not in e.get("d", ""))
    assert path.count("M") == 3
    assert "nan" not in svg.lower().replace("nan%", "")
    assert draw(Chart("Loss", [math.nan])) == ""


def test_one_epoch_is_a_dot_in_the_middle():
    (dot,) = shapes(draw(Chart("Loss", [3.0])), "circle", "training")
    assert float(dot.get("cx")) == (48 + 480 - 14) / 2


def test_without_validation_there_is_neither_gap_nor_second_legend():
    svg = draw(Chart("Loss", [3.0, 2.0], best=None))
    assert "validation" not in svg
    assert "gap" not in svg


def test_text_is_escaped():
    assert "<b>" not in draw(Chart("<b>", [1.0]))


def test_best_epoch_is_the_earliest_of_equals():
    assert best_epoch([0.1, 0.9, 0.9, 0.2]) == 1
    assert best_epoch([math.nan, 0.3]) == 1
    assert best_epoch([math.nan]) is None
    assert best_epoch([]) is None


def test_column():
    assert column([{"a": 1.0}, {"a": 2.0}], "a") == [1.0, 2.0]
    assert column([{"a": 1.0}], "b") == []
    assert math.isnan(column([{}, {"a": 2.0}], "a")[0])


def test_chance_is_the_share_of_the_commonest_class():
    assert chance_level(np.array([0, 1, 1, 1])) == 0.75
