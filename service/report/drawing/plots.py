"""Plots as data: what a line chart shows, its words for those who cannot see it, and the table behind it.

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
        name: In the legend.
        values: One for each x; NaN where there is none: the line goes on to the next.
        role: Its colour: `training`, `validation`, or `a` to `f`.
    """

    name: str
    values: Sequence[float]
    role: str = "a"


@dataclass(frozen=True)
class Plot:
    """A line chart.

    Attributes:
        title: What the values are.
        x_label: What the places along the x axis are.
        x: Ascending.
        lines: At least one.
        percent: Whether values are shares in [0, 1], shown as percentages.
        marks: Places along the x axis that are marked by a vertical line and words.
        levels: Values that are marked by a horizontal, dashed line and words.
        shade: Fill the area between the first two lines.
        ticks: Names of the places, where they are no numbers.
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

    @property
    def is_empty(self) -> bool:
        """Whether no line has a finite value."""
        return not any(math.isfinite(value) for line in self.lines for value in line.values)

    def data(self) -> dict[str, Any]:
        """What the browser needs, ready for JSON; null where a value is not finite."""
        return {
            "x": [float(x) for x in self.x],
            "lines": [
                {"name": line.name, "role": line.role, "values": [_finite(v) for v in line.values]}
                for line in self.lines
            ],
            "percent": self.percent,
            "x_label": self.x_label,
            "marks": [list(mark) for mark in self.marks],
            "levels": [list(level) for level in self.levels if math.isfinite(level[0])],
            "shade": self.shade and len(self.lines) > 1,
            "ticks": list(self.ticks),
        }

    def show(self, value: float) -> str:
        """A value as the plot writes it."""
        return percent(value, 2) if self.percent else number(value, 4)

    def place(self, index: int) -> str:
        """A place along the x axis as the plot writes it."""
        return self.ticks[index] if self.ticks else number(float(self.x[index]))

    def words(self) -> str:
        """The plot for those who cannot see it: where every line begins and ends, and what is marked."""
        count = len(self.x)
        said = [f"{self.title} over {count} {self.x_label}{'s' if count != 1 else ''}"]
        for line in self.lines:
            finite = [value for value in line.values if math.isfinite(value)]
            if finite:
                said.append(f"{line.name} from {self.show(finite[0])} to {self.show(finite[-1])}")
        return "; ".join(
            [
                *said,
                *(words for _, words in self.marks),
                *(f"{words}: {self.show(value)}" for value, words in self.levels),
            ]
        )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
