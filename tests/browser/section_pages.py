"""Pages of single sections, which are built from values in a test and need no run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from service.report.pages.page import load_templates
from service.report.pages.scripts import build_policy, load_scripts
from service.report.sections.section import Section

PAGE = """{% extends "base.html" %}
{% block title %}Sections{% endblock %}
{% block style %}
{% include "architecture.css" %}{% include "gallery.css" %}{% include "knowledge.css" %}
{% endblock %}
{% block header %}<h1>Sections</h1>{% endblock %}
{% block main %}
<section class="view" id="view-sections" data-view aria-label="Sections">
{% for section in sections %}
<section class="part" id="{{ section.id }}"><h2>{{ section.title }}</h2>
{% with values = section.values %}{% include section.id ~ ".html" %}{% endwith %}</section>
{% endfor %}
</section>
{% endblock %}
"""


def write_sections(path: Path, sections: Sequence[Section]) -> Path:
    """Writes a page with some sections in one view.

    Args:
        path: File of the page, in the directory of the album if the sections have pictures.
        sections: Sections of the page.

    Returns:
        The file.
    """
    scripts = load_scripts()
    template = load_templates().from_string(PAGE)
    anchors = frozenset(anchor for section in sections for anchor in section.anchors)
    policy = build_policy(scripts)
    path.write_text(template.render(sections=sections, scripts=scripts, policy=policy, anchors=anchors))
    return path
