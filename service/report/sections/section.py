"""`Section`, the result of every section builder: title, values for a template, figures for the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes:
        id: Anchor of the section, key of its figures in the manifest, and name of its template.
        title: Heading of the section.
        values: Values the template renders, available to it as `values`.
        figures: Every number the section shows, for the manifest.
        template: Template file of a section defined outside this package; None for `html/<id>.html`.
    """

    id: str
    title: str
    values: dict[str, Any]
    figures: dict[str, Any]
    template: Path | None = None
