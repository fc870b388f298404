"""Line charts as data: the lines, a description for those who cannot see them, and formatted values.

The page draws them in the browser (`html/page.js`, with uPlot); `html/plot.html` puts one into a template.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.report.drawing.formatting import number, percent


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Attributes:
        name: Name in the legend.
        values: One value for each x; NaN for a missing value, which the line bridges.
        role: Colour of the line: `training`, `validation`, or `a` to `f`.
    """

    name: str
    values: Sequence[float]
    role: str = "a"


@dataclass(frozen=True)
class Plot:
    """A line chart.

    Attributes:
        title: Name of the plotted values.
        x_label: Unit of the x values, in the singular: `epoch`.
        x: Values of the x axis, ascending.
        lines: The lines, at least one.
        percent: Whether values are fractions in [0, 1], shown as percentages.
        marks: Positions on the x axis marked by a vertical line, each with a text.
        levels: Values marked by a horizontal, dashed line, each with a text.
        shade: Whether the area between the first two lines is filled.
        ticks: Names of the x values if they are not numbers.
        caption: What the plot shows and how to read it, printed below it.
        log: Whether the y axis is logarithmic; the values are above 0 then.
    """

    title: str
    x_label: str
    x: Sequence[float]
    lines: tuple[Line, ...]
    percent: bool = False
    marks: tuple[tuple[float, str], ...] = ()
    levels: tuple[tuple[float, str], ...] = ()
    shade: bool = False
    ticks: tuple[str, ...] = ()
    caption: str = ""
    log: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether no line has a finite value."""
        return not any(math.isfinite(value) for line in self.lines for value in line.values)

    def data(self) -> dict[str, Any]:
        """Returns the plot as data for the browser, ready for JSON; null for values that are not finite."""
        lines = [
            {"name": line.name, "role": line.role, "values": [_replace_nan(value) for value in line.values]}
            for line in self.lines
        ]
        return {
            "x": [float(x) for x in self.x],
            "lines": lines,
            "percent": self.percent,
            "x_label": self.x_label,
            "marks": [list(mark) for mark in self.marks],
            "levels": [list(level) for level in self.levels if math.isfinite(level[0])],
            "shade": self.shade and len(self.lines) > 1,
            "ticks": list(self.ticks),
            "log": self.log,
        }

    def format_value(self, value: float) -> str:
        """Formats a value of a line."""
        return percent(value, 2) if self.percent else number(value, 4)

    def format_x(self, index: int) -> str:
        """Formats the x value at an index: its name, or its number."""
        return self.ticks[index] if self.ticks else number(float(self.x[index]))

    def describe(self) -> str:
        """Describes the plot in a sentence: first and last values of the lines, marks and levels."""
        count = len(self.x)
        plural = "" if count == 1 else "s"
        parts = [f"{self.title} over {count} {self.x_label}{plural}"]
        for line in self.lines:
            finite = [value for value in line.values if math.isfinite(value)]
            if finite:
                first = self.format_value(finite[0])
                last = self.format_value(finite[-1])
                parts.append(f"{line.name} from {first} to {last}")
        parts += [text for _, text in self.marks]
        parts += [f"{text}: {self.format_value(value)}" for value, text in self.levels]
        return "; ".join(parts)


def _replace_nan(value: float) -> float | None:
    """Replaces NaN and infinity, which JSON cannot represent, by None."""
    return float(value) if math.isfinite(value) else None
