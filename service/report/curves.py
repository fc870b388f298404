"""Curves: loss and accuracy of every epoch, drawn as SVG that takes its colours from the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

from service.report.pictures import Album
from service.report.subject import Section, Subject

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 40, 40  # margins
DOTS = 12  # so few epochs get a dot each


@dataclass(frozen=True)
class Chart:
    """One chart: training and validation over the epochs.

    Attributes:
        title: What the values are.
        training: A value per epoch; NaN where there is none.
        validation: The same, or empty.
        percent: Whether values are shares, shown as percentages.
        best: Index of the best epoch, marked together with the gap between the two curves there.
        level: A value to draw a dashed line at, such as chance.
    """

    title: str
    training: Sequence[float]
    validation: Sequence[float] = ()
    percent: bool = False
    best: int | None = None
    level: float | None = None


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from at or below `low` to at or above `high`.

    Args:
        low: Finite.
        high: Finite, not below `low`.
        most: Steps between the first and the last, at most.
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    for step in (power * factor for factor in (1, 2, 5, 10, 20)):
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= most:
            break
    last = max(last, first + 1)
    return [float(f"{step * n:.12g}") for n in range(first, last + 1)]


def draw(chart: Chart) -> str:
    """Draws a chart as an SVG element.

    Lines have the classes `training` and `validation`, the area between them `gap`; the page's
    stylesheet colours them.

    Returns:
        SVG, all text in it escaped; empty if there is no finite value.
    """
    finite = [v for v in (*chart.training, *chart.validation) if math.isfinite(v)]
    if not finite:
        return ""
    if chart.level is not None:
        finite.append(chart.level)
    y_ticks = ticks(min(finite), max(finite))
    epochs = len(chart.training)
    x = _scale(1, epochs, LEFT, WIDTH - RIGHT)
    y = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    svg = ElementTree.Element("svg", {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "class": "chart", "aria-label": _words(chart)})
    _axes(svg, chart, y_ticks, x, y)
    _gap(svg, chart, x, y)
    for name, values in (("training", chart.training), ("validation", chart.validation)):
        _line(svg, name, values, x, y)
    _best(svg, chart, x, y)
    _legend(svg, chart)
    return ElementTree.tostring(svg, encoding="unicode")


Scale = Callable[[float], float]


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    """A linear map of [low, high] to [start, end]; to the middle if the interval is empty."""
    if low == high:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _add(parent: ElementTree.Element, tag: str, text: str | None = None, **attributes: float | str) -> None:
    numbers = {key: f"{value:.1f}" if isinstance(value, float) else str(value) for key, value in attributes.items()}
    element = ElementTree.SubElement(parent, tag, {key.rstrip("_").replace("_", "-"): value for key, value in numbers.items()})
    element.text = text


def _axes(svg: ElementTree.Element, chart: Chart, y_ticks: list[float], x: Scale, y: Scale) -> None:
    unit = 100 if chart.percent else 1
    digits = max(len(f"{tick * unit:.6g}".partition(".")[2]) for tick in y_ticks)
    for tick in y_ticks:
        _add(svg, "line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick))
        label = f"{tick * unit:.{digits}f}" + ("%" if chart.percent else "")
        _add(svg, "text", label, class_="tick", x=LEFT - 7, y=y(tick) + 4, text_anchor="end")
    epochs = len(chart.training)
    for tick in [t for t in ticks(1, epochs, 8) if t == int(t) and 1 < t <= epochs] + [1]:
        _add(svg, "line", class_="axis", x1=x(tick), x2=x(tick), y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4)
        _add(svg, "text", f"{tick:.0f}", class_="tick", x=x(tick), y=HEIGHT - BOTTOM + 18, text_anchor="middle")
    _add(svg, "line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM)
    _add(svg, "text", "epoch", class_="tick", x=WIDTH - RIGHT, y=HEIGHT - 6, text_anchor="end")
    if chart.level is not None:
        _add(svg, "line", class_="level", x1=LEFT, x2=WIDTH - RIGHT, y1=y(chart.level), y2=y(chart.level))
        _add(svg, "text", "chance", class_="note", x=WIDTH - RIGHT, y=y(chart.level) - 5, text_anchor="end")


def _line(svg: ElementTree.Element, name: str, values: Sequence[float], x: Scale, y: Scale) -> None:
    """One curve; epochs without a finite value break it."""
    path, pen = [], "M"
    for index, value in enumerate(values):
        if not math.isfinite(value):
            pen = "M"
            continue
        path.append(f"{pen}{x(index + 1):.1f} {y(value):.1f}")
        pen = "L"
        if len(values) <= DOTS:
            _add(svg, "circle", class_=name, cx=x(index + 1), cy=y(value), r="2.5")
    if path:
        _add(svg, "path", class_=name, d="".join(path))


def _gap(svg: ElementTree.Element, chart: Chart, x: Scale, y: Scale) -> None:
    """The area between the two curves."""
    pairs = [(i, a, b) for i, (a, b) in enumerate(zip(chart.training, chart.validation, strict=False)) if math.isfinite(a + b)]
    if len(pairs) > 1:
        there = [f"{x(i + 1):.1f},{y(a):.1f}" for i, a, _ in pairs]
        back = [f"{x(i + 1):.1f},{y(b):.1f}" for i, _, b in reversed(pairs)]
        _add(svg, "polygon", class_="gap", points=" ".join(there + back))


def _best(svg: ElementTree.Element, chart: Chart, x: Scale, y: Scale) -> None:
    """The best epoch, and the gap there, as a line between the two curves with its size."""
    if chart.best is None or not chart.validation:
        return
    a, b, at = chart.training[chart.best], chart.validation[chart.best], x(chart.best + 1)
    if not math.isfinite(a + b):
        return
    _add(svg, "line", class_="best", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM)
    _add(svg, "line", class_="bracket", x1=at, x2=at, y1=y(a), y2=y(b))
    for name, value in (("training", a), ("validation", b)):
        _add(svg, "circle", class_=name, cx=at, cy=y(value), r=4)
    size = f"{abs(a - b) * 100:.1f} points" if chart.percent else f"{abs(a - b):.3f}"
    right = at < (LEFT + WIDTH - RIGHT) / 2
    side, anchor = (at + 8, "start") if right else (at - 8, "end")
    is_high = (y(a) + y(b)) / 2 < (TOP + HEIGHT - BOTTOM) / 2
    floor = HEIGHT - BOTTOM if chart.level is None else y(chart.level)
    top = floor - 36 if is_high else TOP + 10  # where the curves are not
    _add(svg, "text", f"best epoch {chart.best + 1}", class_="note", x=side, y=top, text_anchor=anchor)
    _add(svg, "text", f"gap {size}", class_="note strong", x=side, y=top + 15, text_anchor=anchor)


def _legend(svg: ElementTree.Element, chart: Chart) -> None:
    _add(svg, "text", chart.title, class_="title", x=0, y=16)
    at = WIDTH - RIGHT - (176 if chart.validation else 76)
    for name in ("training", "validation") if chart.validation else ("training",):
        _add(svg, "path", class_=name, d=f"M{at} 12h18")
        _add(svg, "text", name, class_="tick", x=at + 23, y=16)
        at += 92


def _words(chart: Chart) -> str:
    def show(value: float) -> str:
        return f"{value:.1%}" if chart.percent else f"{value:.3f}"

    words = f"{chart.title} over {len(chart.training)} epochs: training ends at {show(chart.training[-1])}"
    if chart.validation:
        words += f", validation at {show(chart.validation[-1])}"
    if chart.best is not None and chart.validation:
        words += f"; best epoch {chart.best + 1} with validation {show(chart.validation[chart.best])}"
    return words


def best_epoch(accuracies: Sequence[float]) -> int | None:
    """Index of the highest accuracy, the earliest of equals; None where there is no finite one."""
    finite = [(-value, index) for index, value in enumerate(accuracies) if math.isfinite(value)]
    return min(finite)[1] if finite else None


def column(epochs: Sequence[dict[str, float]], key: str) -> list[float]:
    """One metric over the epochs, NaN where an epoch lacks it; empty where all do."""
    values = [float(epoch.get(key, math.nan)) for epoch in epochs]
    return values if any(key in epoch for epoch in epochs) else []


def chance_level(labels: np.ndarray) -> float:
    """Accuracy of always naming the commonest class."""
    return float(np.bincount(labels).max() / len(labels)) if len(labels) else math.nan


def part(subject: Subject, album: Album) -> Section | None:
    """Charts of accuracy and loss, and the values behind them."""
    epochs = subject.epochs
    if not epochs:
        return None
    best = best_epoch(column(epochs, "val_accuracy"))
    chance = chance_level(subject.evaluation.labels)
    charts = [
        Chart("Accuracy", column(epochs, "accuracy"), column(epochs, "val_accuracy"), True, best, None if math.isnan(chance) else chance),
        Chart("Loss", column(epochs, "loss"), column(epochs, "val_loss"), False, best),
    ]
    figures = {"epochs": list(epochs), "best_epoch": None if best is None else best + 1, "chance": chance}
    return Section(
        "curves", "Learning curves", {"charts": [Markup(draw(chart)) for chart in charts], "epochs": epochs, "best": best}, figures
    )
