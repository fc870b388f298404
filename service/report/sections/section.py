"""`Section`, the result of every section builder: title, values for a template, figures for the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it loads Keras, which the pages without a model do not need
    from service.report.sections.examples import ShownExample


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes:
        id: Anchor of the section, key of its figures in the manifest, and name of its template.
        title: Heading of the section.
        values: Values the template renders, available to it as `values`.
        figures: Every number the section shows, for the manifest.
        template: Template file of a section defined outside this package; None for `html/<id>.html`.
        examples: Images that the section shows one at a time: its view has one selector for them, the key
            `image` of the page's controls.
        anchors: Ids inside the section that other sections may link to, such as `layer-conv2d`; a link is
            drawn only if its target is on the page.
    """

    id: str
    title: str
    values: dict[str, Any]
    figures: dict[str, Any]
    template: Path | None = None
    examples: tuple[ShownExample, ...] = ()
    anchors: frozenset[str] = frozenset()
