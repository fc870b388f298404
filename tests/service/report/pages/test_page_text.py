"""What templates print: names from outside are text, and their invisible characters are visible."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.report.pages.page import load_templates

HOSTILE = "\x1b[31m\u202etxt.exe\u200f\u2066\x00<b>\"'&"
SHOWN = r"\x1b[31m\u202etxt.exe\u200f\u2066\x00"


def fill(template: str, **values: Any) -> str:
    return load_templates().from_string(template).render(**values)


@pytest.mark.parametrize(
    "template",
    [
        "{{ name }}",
        '<a title="{{ name }}">',
        "{% for one in [name] %}{{ one }}{% endfor %}",
        '{{ [name, name]|join(", ") }}',
        '{{ (name ~ ".")|keep_options }}',
        "{% macro show(text) %}{{ text }}{% endmacro %}{{ show(name) }}",
        "{{ name|truncate(200) }}",
    ],
)
def test_names_are_text_without_invisible_characters(template: str) -> None:
    html = fill(template, name=HOSTILE)
    assert SHOWN in html
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert html.isprintable()


def test_values_of_scripts_are_escaped_as_the_markup_is() -> None:
    values = {HOSTILE: [HOSTILE, ("a", {"n": 1.5, "none": None})]}
    html = fill('<script type="application/json">{{ values|tojson }}</script>', values=values)
    assert "<b>" not in html
    stored = json.loads(html.partition(">")[2].removesuffix("</script>"))
    name = SHOWN + "<b>\"'&"
    assert stored == {name: [name, ["a", {"n": 1.5, "none": None}]]}


def test_line_breaks_of_texts_are_kept() -> None:
    assert fill("<pre>{{ text }}</pre>", text="two\n\tlines") == "<pre>two\n\tlines</pre>"
