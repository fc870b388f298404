"""Embeds scripts and pictures in a page, and builds its Content-Security-Policy."""

from __future__ import annotations

import base64
import hashlib
import mimetypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

PLOTTING = ("uplot.min.js",)
# In this order: they share one scope.
PAGE_SCRIPTS = (
    "tools.js",
    "plots.js",
    "sheets.js",
    "layers.js",
    "tables.js",
    "runs.js",
    "thresholds.js",
    "class_scores.js",
    "embedding.js",
    "gallery.js",
    "page.js",
)


@dataclass(frozen=True)
class Script:
    """A classic script of a page.

    Attributes:
        text: Source code of the script.
        digest: Digest that the page's policy allows.
    """

    text: str
    digest: str


def load_scripts(plots: bool = True) -> list[Script]:
    """Loads the scripts of a page.

    Args:
        plots: Whether the page holds a plot, which needs the plotting library.
    """
    return [_load_script(name) for name in (PLOTTING if plots else ()) + PAGE_SCRIPTS]


def embed_scripts(scripts: Sequence[Script]) -> Markup:
    """Returns the elements of a page that hold its scripts, in order."""
    return Markup("\n".join(f"<script>{script.text}</script>" for script in scripts))


def build_policy(scripts: Sequence[Script]) -> str:
    """Builds the Content-Security-Policy of a page: its own scripts, and those that they load, may run.

    With `strict-dynamic`, a script that was added to the markup does not run, but `page.js` can load a view.
    """
    digests = " ".join(f"'{script.digest}'" for script in scripts)
    allowed = f"{digests} 'strict-dynamic'" if scripts else "'none'"
    return (
        "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; "
        f"script-src {allowed}; base-uri 'none'; form-action 'none'"
    )


def embed_pictures(html: str, directory: Path) -> str:
    """Embeds the pictures of a page.

    Links to pictures become plain text, because browsers do not follow a link to an embedded picture.

    Args:
        html: Page whose pictures are files below `directory`.
        directory: Directory the page would be stored in.
    """

    def embed(match: re.Match[str]) -> str:
        path = directory / match[1]
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return f'src="data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"'

    html = re.sub(r'<a href="pictures/[^"]*"', "<a", html)
    return re.sub(r'src="(pictures/[^"]+)"', embed, html)


def _load_script(name: str) -> Script:
    text = files("service.report").joinpath("html", name).read_text(encoding="utf-8")
    if "</script" in text.lower() or "\r" in text:
        raise ValueError("a script of the page contains an end tag, or line ends that browsers change")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Script(text, f"sha256-{digest}")
