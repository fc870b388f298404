"""Tables for the terminal: one line per row, whatever is in a name."""

from __future__ import annotations

import io
import logging

import pytest
from rich.table import Table

from pipelines.text import LineFormatter, escape_name, print_lines, render_table


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


HOSTILE = "\x1b]0;title\x07\x9b2J\r\n\u202eabc\u2066\u200f<b>"


def test_a_printed_line_stays_one_line_and_moves_nothing():
    output = io.StringIO()
    print_lines(f"open {HOSTILE}", "next", file=output)
    assert output.getvalue() == (r"open \x1b]0;title\x07\x9b2J\r\n\u202eabc\u2066\u200f<b>" + "\nnext\n")


def test_a_logged_message_stays_one_line():
    record = logging.makeLogRecord({"msg": "class %s", "args": (HOSTILE,)})
    assert LineFormatter("%(message)s").format(record).isprintable()


def test_the_middle_of_a_very_long_cell_is_left_out():
    table = Table("class", "count", box=None)
    table.add_row("a" * 9000 + "b" * 9000, "1")
    _, row = render_table(table).splitlines()
    assert row.split() == ["a" * 250, "…", "b" * 250, "1"]


def test_kept_characters_are_not_escaped():
    assert escape_name("a\n\tb\x1b", kept="\n") == "a\n\\tb\\x1b"
