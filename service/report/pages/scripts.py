"""The scripts and the policy of a page: everything inside it, nothing fetched, nothing run that is not ours."""

from __future__ import annotations

import base64
import hashlib
import mimetypes
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

PLOTTING = ("uplot.min.js",)
PAGE_SCRIPTS = ("tools.js", "plots.js", "sheets.js", "page.js")  # in this order, they share one scope


@dataclass(frozen=True)
class Script:
    """A classic script, as it stands in a page.

    Attributes:
        text: Its source.
        digest: How the page's policy names it.
    """

    text: Markup
    digest: str


def scripts(plots: bool = True) -> list[Script]:
    """The scripts of a page.

    Args:
        plots: Whether the page holds a plot, which takes the plotting library.
    """
    folder = files("service.report").joinpath("html")
    names = (PLOTTING if plots else ()) + PAGE_SCRIPTS
    return [_script(folder.joinpath(name).read_text(encoding="utf-8")) for name in names]


def policy(inside: list[Script]) -> str:
    """The Content-Security-Policy of a page that holds these scripts and fetches nothing but its pictures."""
    allowed = " ".join(f"'{script.digest}'" for script in inside) or "'none'"
    return (
        "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; "
        f"script-src {allowed}; base-uri 'none'; form-action 'none'"
    )


def with_pictures_inside(html: str, directory: Path) -> str:
    """The page with its pictures as part of it.

    Links to pictures become plain text: browsers do not follow a link into such a picture.

    Args:
        html: A page whose pictures are files below `directory`.
        directory: Where it would stand.
    """

    def inline(match: re.Match[str]) -> str:
        path = directory / match[1]
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return f'src="data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"'

    html = re.sub(r'<a href="pictures/[^"]*"', "<a", html)
    return re.sub(r'src="(pictures/[^"]+)"', inline, html)


def _script(text: str) -> Script:
    if "</script" in text.lower() or "\r" in text:
        raise ValueError("a script of the page holds what would end it, or a line end that browsers change")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Script(Markup(text), f"sha256-{digest}")
