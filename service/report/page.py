"""The page: sections into HTML, figures and pictures into the manifest."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from pipelines.storage import write_atomically
from service.report.pictures import Album
from service.report.subject import Section, Subject
from service.report.summary import Summary, doubts, verdict

MANIFEST = "manifest.json"
KIND = "glassbox report"
VERSION = 1
NONE = "\N{EN DASH}"


def write(directory: Path, subject: Subject, summary: Summary, sections: Sequence[Section], album: Album, state: str = "") -> None:
    """Writes `index.html` and `manifest.json` beside the album's pictures. Same content, same bytes."""
    html = (
        templates()
        .get_template("page.html")
        .render(subject=subject, summary=summary, verdict=verdict(summary), doubts=doubts(summary, state), sections=sections)
    )
    write_atomically(directory / "index.html", html)
    manifest = {
        "kind": KIND,
        "version": VERSION,
        "name": subject.name,
        "checkpoint": subject.model_digest,
        "shards": subject.shards_digest,
        "scale": subject.scale,
        "options": subject.options.model_dump(mode="json"),
        "figures": {"summary": summary.figures()} | {section.id: section.figures for section in sections},
        "pictures": [album.entries[file] for file in sorted(album.entries)],
    }
    write_atomically(directory / MANIFEST, json.dumps(_finite(manifest), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def is_report(directory: Path) -> bool:
    """Whether a directory holds a report of ours, which a new one may replace."""
    try:
        return bool(json.loads((directory / MANIFEST).read_bytes())["kind"] == KIND)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def templates() -> jinja2.Environment:
    """The templates of all pages; what they print is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("service.report", "html"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number}
    return environment


def percent(share: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage; a dash where there is none. Never rounds up to 100% or down to 0%."""
    if share is None or not math.isfinite(share):
        return NONE
    text = f"{share * 100:.{digits}f}"
    edge = 10.0**-digits
    if share < 1 and float(text) >= 100:
        text = f">{100 - edge:.{digits}f}"
    elif share > 0 and float(text) <= 0:
        text = f"<{edge:.{digits}f}"
    return f"{text}%"


def number(value: float | None, digits: int = 3) -> str:
    """A number in few digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.{digits}g}"


def _finite(value: Any) -> Any:
    """The same with null for NaN and infinity, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
