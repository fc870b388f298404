"""A bar chart of a benchmark's figures as an SVG that reads well on light and on dark pages.

`python tests/benchmarks/plot.py RUN.json FILE.svg`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

WIDTH, LABELS, BARS, ROW, BAR = 840, 300, 356, 28, 16
TOP, BOTTOM, MARGIN = 84, 62, 24
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #24292f }
.title { font-size: 17px; font-weight: 600 } .strong { font-weight: 600 }
.small { font-size: 11.5px; font-weight: 400; fill: #59636e }
.page { fill: #ffffff; stroke: #d0d7de } .axis { stroke: #d0d7de } .range { stroke: #24292f; stroke-opacity: .55; stroke-width: 1.5 }
.ours { fill: #0a7f6f } .raw { fill: #8c959f } .peer { fill: #c9a26b }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 } .page { fill: #0d1117; stroke: #30363d } .axis { stroke: #30363d }
  .range { stroke: #e6edf3 } .ours { fill: #2ec4ad } .raw { fill: #6e7681 } .peer { fill: #9a7b4f }
}
"""


def svg(figures: Mapping[str, Any]) -> str:
    """Draws the rows that are comparable, fastest on top.

    Args:
        figures: As `table.results` and `runner.run` make them.

    Returns:
        The text of an SVG file, whole in itself.
    """
    rows = sorted(
        (row for row in figures["rows"] if row.get("drawn")), key=lambda row: -row["images_per_second"]
    )
    scale = BARS / max((row["highest"] for row in rows), default=1.0)
    height = TOP + ROW * len(rows) + BOTTOM
    host = figures["machine"]
    lines = [
        *opening("Images per second", figures["title"], height),
        *_legend(),
        f'<line class="axis" x1="{LABELS}" x2="{LABELS}" y1="{TOP - 6}" y2="{TOP + ROW * len(rows)}"/>',
    ]
    for place, row in enumerate(rows):
        lines += _bar(row, TOP + ROW * place, scale)
    about = f"{figures['images']} {figures['note']}; median of {figures['rounds']} rounds, thin lines from the slowest to the fastest"
    for up, words in ((34, about), (18, f"{host['cores']} cores of {host['cpu']}, {figures['date']}")):
        lines.append(f'<text class="small" x="{MARGIN}" y="{height - up}">{escape(words)}</text>')
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


def opening(heading: str, title: str, height: int, style: str = "") -> list[str]:
    """The beginning of a picture: an empty page with its heading and title, which more style may follow."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}{style}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        f'<text class="title" x="{MARGIN}" y="34">{heading}</text>',
        f'<text class="small" x="{MARGIN}" y="54">{escape(title)}</text>',
    ]


def _kind(name: str) -> str:
    return next((kind for kind in ("ours", "raw") if name.startswith(kind + ":")), "peer")


def _legend() -> list[str]:
    words = (("ours", "glassbox", 0), ("raw", "raw limits", 96), ("peer", "other libraries", 188))
    out = []
    for kind, word, offset in words:
        x = WIDTH - MARGIN - 290 + offset
        out.append(
            f'<rect class="{kind}" x="{x}" y="24" width="11" height="11" rx="2"/><text class="small" x="{x + 17}" y="34">{word}</text>'
        )
    return out


def _bar(row: Mapping[str, Any], top: float, scale: float) -> list[str]:
    """A name, a bar with its range, and the figure."""
    kind, middle = _kind(row["name"]), top + ROW / 2
    length = row["images_per_second"] * scale
    low, high = LABELS + row["lowest"] * scale, LABELS + row["highest"] * scale
    name = row["name"].replace("ours: ", "glassbox: ")
    weight = ' class="strong"' if kind == "ours" else ""
    of_limit = "" if row["of_limit"] is None else f"{row['of_limit']:.2f} of the limit"
    return [
        f'<text{weight} x="{LABELS - 12}" y="{middle + 4.5:.1f}" text-anchor="end">{escape(name)}</text>',
        f'<rect class="{kind}" x="{LABELS}" y="{middle - BAR / 2:.1f}" width="{length:.1f}" height="{BAR}" rx="2"/>',
        f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>',
        f'<text{weight} x="{high + 8:.1f}" y="{middle + 4.5:.1f}">{row["images_per_second"]:,.0f}'
        f'<tspan class="small" dx="8">{of_limit}</tspan></text>',
    ]


def main(source: str, target: str) -> None:
    """Draws the figures of one file into another."""
    Path(target).write_text(svg(json.loads(Path(source).read_text())))


if __name__ == "__main__":
    main(*sys.argv[1:])
