"""Draws the figures of a benchmark as a bar chart, an SVG for light and dark pages.

`python tests/benchmarks/plot.py RUN.json FILE.svg`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

WIDTH = 840
LABEL_WIDTH = 300
BAR_WIDTH = 356  # of the longest bar
ROW_HEIGHT = 28
BAR_HEIGHT = 16
TOP = 84
BOTTOM = 62
MARGIN = 24
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #24292f }
.title { font-size: 17px; font-weight: 600 } .strong { font-weight: 600 }
.small { font-size: 11.5px; font-weight: 400; fill: #59636e }
.page { fill: #ffffff; stroke: #d0d7de } .axis { stroke: #d0d7de }
.range { stroke: #24292f; stroke-opacity: .55; stroke-width: 1.5 }
.ours { fill: #0a7f6f } .raw { fill: #8c959f } .peer { fill: #c9a26b }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 }
  .page { fill: #0d1117; stroke: #30363d } .axis { stroke: #30363d }
  .range { stroke: #e6edf3 } .ours { fill: #2ec4ad } .raw { fill: #6e7681 } .peer { fill: #9a7b4f }
}
"""
LEGEND = (("ours", "glassbox", 0), ("raw", "raw limits", 96), ("peer", "other libraries", 188))


def render_chart(figures: Mapping[str, Any]) -> str:
    """Draws the comparable rows, the fastest on top.

    Args:
        figures: Figures as returned by `runner.run`.

    Returns:
        The text of a self-contained SVG file.
    """
    plotted = [row for row in figures["rows"] if row.get("drawn")]
    rows = sorted(plotted, key=lambda row: -row["images_per_second"])
    scale = BAR_WIDTH / max((row["highest"] for row in rows), default=1.0)
    height = TOP + ROW_HEIGHT * len(rows) + BOTTOM
    axis_end = TOP + ROW_HEIGHT * len(rows)
    lines = [
        *start_svg("Images per second", figures["title"], height),
        *_render_legend(),
        f'<line class="axis" x1="{LABEL_WIDTH}" x2="{LABEL_WIDTH}" y1="{TOP - 6}" y2="{axis_end}"/>',
    ]
    for index, row in enumerate(rows):
        lines += _render_bar(row, TOP + ROW_HEIGHT * index, scale)
    host = figures["machine"]
    rounds = f"median of {figures['rounds']} rounds, thin lines from the slowest to the fastest"
    notes = (
        (34, f"{figures['images']} {figures['note']}; {rounds}"),
        (18, f"{host['cores']} cores of {host['cpu']}, {figures['date']}"),
    )
    for offset, note in notes:
        lines.append(f'<text class="small" x="{MARGIN}" y="{height - offset}">{escape(note)}</text>')
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


def start_svg(heading: str, title: str, height: int, style: str = "") -> list[str]:
    """Returns the first lines of an SVG: an empty page with heading and title.

    Args:
        heading: Text in large type.
        title: Text below the heading, and the title of the document.
        height: Height in pixels.
        style: CSS in addition to `STYLE`.
    """
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    page = f'x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"'
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}{style}</style>",
        f'<rect class="page" {page}/>',
        f'<text class="title" x="{MARGIN}" y="34">{heading}</text>',
        f'<text class="small" x="{MARGIN}" y="54">{escape(title)}</text>',
    ]


def _find_kind(name: str) -> str:
    prefix = name.partition(":")[0]
    return prefix if prefix in ("ours", "raw") else "peer"


def _render_legend() -> list[str]:
    lines = []
    for kind, label, offset in LEGEND:
        x = WIDTH - MARGIN - 290 + offset
        lines.append(
            f'<rect class="{kind}" x="{x}" y="24" width="11" height="11" rx="2"/>'
            f'<text class="small" x="{x + 17}" y="34">{label}</text>'
        )
    return lines


def _render_bar(row: Mapping[str, Any], top: float, scale: float) -> list[str]:
    """Draws a label, a bar with its range, and the rate."""
    kind = _find_kind(row["name"])
    name = escape(row["name"].replace("ours: ", "glassbox: "))
    middle = top + ROW_HEIGHT / 2
    bar_top = middle - BAR_HEIGHT / 2
    baseline = middle + 4.5
    length = row["images_per_second"] * scale
    low = LABEL_WIDTH + row["lowest"] * scale
    high = LABEL_WIDTH + row["highest"] * scale
    weight = ' class="strong"' if kind == "ours" else ""
    of_limit = "" if row["of_limit"] is None else f"{row['of_limit']:.2f} of the limit"
    bar = f'x="{LABEL_WIDTH}" y="{bar_top:.1f}" width="{length:.1f}" height="{BAR_HEIGHT}" rx="2"'
    return [
        f'<text{weight} x="{LABEL_WIDTH - 12}" y="{baseline:.1f}" text-anchor="end">{name}</text>',
        f'<rect class="{kind}" {bar}/>',
        f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>',
        f'<text{weight} x="{high + 8:.1f}" y="{baseline:.1f}">{row["images_per_second"]:,.0f}'
        f'<tspan class="small" dx="8">{of_limit}</tspan></text>',
    ]


def main(source: str, target: str) -> None:
    """Draws the figures of a JSON file into an SVG file."""
    Path(target).write_text(render_chart(json.loads(Path(source).read_text())))


if __name__ == "__main__":
    main(*sys.argv[1:])
