"""The validation accuracy of some runs over their epochs, as an SVG that reads well on light and on dark pages.

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

from plot import WIDTH, opening  # noqa: E402 (after the path is set)

from service.runs import Run  # noqa: E402

Curve = Sequence[tuple[int, float]]  # epoch and accuracy
HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 64, 96, 72, 44
LINES = """
.grid { stroke: #d0d7de; stroke-opacity: .6 } .line { fill: none; stroke-width: 2; stroke-linejoin: round }
.run0 { stroke: #0a7f6f } .run1 { stroke: #c9803a } .run2 { stroke: #6a5acd }
.name0 { fill: #0a7f6f } .name1 { fill: #a8621d } .name2 { fill: #6a5acd }
@media (prefers-color-scheme: dark) {
  .grid { stroke: #30363d } .run0 { stroke: #2ec4ad } .run1 { stroke: #e0a060 } .run2 { stroke: #a99cf5 }
  .name0 { fill: #2ec4ad } .name1 { fill: #e0a060 } .name2 { fill: #a99cf5 }
}
"""


def svg(title: str, curves: Sequence[tuple[str, Curve]]) -> str:
    """Draws up to three curves, each with its name and its last value at its end.

    Args:
        title: Above them.
        curves: With their names.
    """
    last = max(epoch for _, curve in curves for epoch, _ in curve)
    low = math.floor(round(10 * min(value for _, curve in curves for _, value in curve), 6)) / 10

    def place(epoch: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * epoch / last
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (1 - low)

    lines = opening("Validation accuracy", title, HEIGHT, LINES)
    for step in range(round(low * 10), 11):
        _, y = place(0, step / 10)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(
            f'<text class="small" x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{step * 10} %</text>'
        )
    for quarter in range(5):
        x, y = place(last * quarter / 4, low)
        lines.append(
            f'<text class="small" x="{x:.1f}" y="{y + 20:.1f}" text-anchor="middle">{last * quarter / 4:g}</text>'
        )
    lines.append(f'<text class="small" x="{WIDTH - RIGHT + 22}" y="{HEIGHT - BOTTOM + 20}">epochs</text>')
    heights = _apart([place(*curve[-1])[1] for _, curve in curves])
    for number, ((name, curve), y) in enumerate(zip(curves, heights, strict=True)):
        points = " ".join(f"{x:.1f},{height:.1f}" for x, height in (place(*point) for point in curve))
        lines.append(f'<polyline class="line run{number}" points="{points}"/>')
        words = f"{escape(name)}: {curve[-1][1]:.1%}"
        lines.append(
            f'<text class="small name{number}" x="{WIDTH - RIGHT + 8}" y="{y + 4:.1f}">{words}</text>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def _apart(heights: Sequence[float], gap: float = 15.0) -> list[float]:
    """The same heights, moved down where two words would lie on each other."""
    moved = list(heights)
    order = sorted(range(len(heights)), key=lambda n: heights[n])
    for above, below in pairwise(order):
        moved[below] = max(moved[below], moved[above] + gap)
    return moved


def main(target: str, title: str, *runs: str) -> None:
    """Draws the runs, named by their seeds."""
    curves = []
    for run in map(Run, runs):
        evaluated = [epoch for epoch in run.metrics() if "val_accuracy" in epoch]
        curves.append(
            (
                f"seed {run.config()['seed']}",
                [(int(epoch["epoch"]), epoch["val_accuracy"]) for epoch in evaluated],
            )
        )
    Path(target).write_text(svg(title, curves))


if __name__ == "__main__":
    main(*sys.argv[1:])
