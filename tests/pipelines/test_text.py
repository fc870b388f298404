"""Tables for the terminal: one line per row, whatever is in a name."""

from __future__ import annotations

import pytest
from rich.table import Table

from pipelines.text import escape_name, render_table


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("cat", "cat"),
        ("日本語", "日本語"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\u2028b\u202ec", r"a\u2028b\u202ec"),
    ],
)
def test_characters_that_break_a_line_are_escaped(name, escaped):
    assert escape_name(name) == escaped


def test_every_row_is_one_line():
    table = Table("class\nname", "count", box=None, pad_edge=False)
    table.add_row("a\nb", "1")
    table.add_row("[b]:cat:", "2")
    assert [line.split() for line in render_table(table).splitlines()] == [
        [r"class\nname", "count"],
        [r"a\nb", "1"],
        ["[b]:cat:", "2"],
    ]
