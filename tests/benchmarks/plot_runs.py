"""Draws the validation accuracy of runs over their epochs, an SVG for light and dark pages.

`python tests/benchmarks/plot_runs.py FILE.svg TITLE RUN [RUN ...]`
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[1:1] = [str(ROOT), str(Path(__file__).parent)]

from plot import WIDTH, start_svg  # noqa: E402 (after the path is set)

from service.runs import Run  # noqa: E402

Curve = Sequence[tuple[int, float]]  # epoch and accuracy
HEIGHT = 340
LEFT = 64
RIGHT = 96
TOP = 72
BOTTOM = 44
LABEL_GAP = 15.0  # least distance of two labels, in pixels
STYLE = """
.grid { stroke: #d0d7de; stroke-opacity: .6 } .line { fill: none; stroke-width: 2; stroke-linejoin: round }
.run0 { stroke: #0a7f6f } .run1 { stroke: #c9803a } .run2 { stroke: #6a5acd }
.name0 { fill: #0a7f6f } .name1 { fill: #a8621d } .name2 { fill: #6a5acd }
@media (prefers-color-scheme: dark) {
  .grid { stroke: #30363d } .run0 { stroke: #2ec4ad } .run1 { stroke: #e0a060 } .run2 { stroke: #a99cf5 }
  .name0 { fill: #2ec4ad } .name1 { fill: #e0a060 } .name2 { fill: #a99cf5 }
}
"""


def render_curves(title: str, curves: Sequence[tuple[str, Curve]]) -> str:
    """Draws up to three curves, each with its name and its last value at its end.

    Args:
        title: Text above the curves.
        curves: Name and points of every curve.
    """
    last_epoch = max(epoch for _, curve in curves for epoch, _ in curve)
    lowest = min(value for _, curve in curves for _, value in curve)
    bottom_value = math.floor(round(10 * lowest, 6)) / 10
    width = WIDTH - LEFT - RIGHT
    height = HEIGHT - TOP - BOTTOM

    def to_pixels(epoch: float, value: float) -> tuple[float, float]:
        x = LEFT + width * epoch / last_epoch
        y = HEIGHT - BOTTOM - height * (value - bottom_value) / (1 - bottom_value)
        return x, y

    lines = start_svg("Validation accuracy", title, HEIGHT, STYLE)
    for tenth in range(round(bottom_value * 10), 11):
        _, y = to_pixels(0, tenth / 10)
        label = f"{tenth * 10} %"
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text class="small" x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for quarter in range(5):
        epoch = last_epoch * quarter / 4
        x, y = to_pixels(epoch, bottom_value)
        position = f'x="{x:.1f}" y="{y + 20:.1f}" text-anchor="middle"'
        lines.append(f'<text class="small" {position}>{epoch:g}</text>')
    lines.append(f'<text class="small" x="{WIDTH - RIGHT + 22}" y="{HEIGHT - BOTTOM + 20}">epochs</text>')
    label_heights = _separate([to_pixels(*curve[-1])[1] for _, curve in curves])
    for number, ((name, curve), label_y) in enumerate(zip(curves, label_heights, strict=True)):
        pixels = [to_pixels(*point) for point in curve]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
        lines.append(f'<polyline class="line run{number}" points="{points}"/>')
        label = f"{escape(name)}: {curve[-1][1]:.1%}"
        position = f'x="{WIDTH - RIGHT + 8}" y="{label_y + 4:.1f}"'
        lines.append(f'<text class="small name{number}" {position}>{label}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _separate(heights: Sequence[float], gap: float = LABEL_GAP) -> list[float]:
    """Returns the heights, moved down where two labels would overlap."""
    separated = list(heights)
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    for above, below in pairwise(order):
        separated[below] = max(separated[below], separated[above] + gap)
    return separated


def main(target: str, title: str, *runs: str) -> None:
    """Draws the curves of run directories, named by their seeds."""
    curves = []
    for run in map(Run, runs):
        curve = [
            (int(epoch["epoch"]), epoch["val_accuracy"]) for epoch in run.metrics() if "val_accuracy" in epoch
        ]
        curves.append((f"seed {run.config()['seed']}", curve))
    Path(target).write_text(render_curves(title, curves))


if __name__ == "__main__":
    main(*sys.argv[1:])
