"""Text for terminals and pages: names from outside are shown as text, invisible characters as escapes."""

from __future__ import annotations

import html
import io
import logging
import unicodedata
from typing import TextIO

from rich.console import Console, RenderableType
from rich.table import Table

from pipelines.errors import shorten_middle

MAX_CELL = 500  # characters; the middle of longer ones is left out
MAX_WIDTH = 10_000  # columns: rows are never wrapped, so that they can be searched
WHITE_SPACE = "\n\t"  # harmless in a page, unlike in a line of the terminal
# Unicode categories that break lines, move the cursor, or are invisible: controls, formats such as
# right-to-left marks, surrogates, separators.
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def escape_name(name: str, kept: str = "") -> str:
    """Replaces line breaks, terminal escapes and other invisible characters by visible backslash escapes.

    Args:
        name: A name from outside, or a line that contains some.
        kept: Characters that are left as they are, such as line breaks.
    """
    if name.isascii() and name.isprintable():
        return name
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _ESCAPED and character not in kept
        else character
        for character in name
    )


def escape_html(text: str) -> str:
    """Escapes a text for a page: its markup, and invisible characters as in `escape_name`.

    Args:
        text: A text that may contain names from outside; line breaks and tabs in it are left as they are.
    """
    return html.escape(escape_name(text, kept=WHITE_SPACE))


def keep_together(text: str) -> str:
    """Returns a text whose line is not broken at its spaces, which become no-break spaces."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def print_lines(*lines: str, file: TextIO | None = None) -> None:
    """Prints lines of text that may contain names from outside; every command prints with this function.

    Args:
        lines: One string per line; line breaks in it are escaped.
        file: Stream to print to; None for standard output.
    """
    for line in lines:
        print(escape_name(line), file=file, flush=True)


def print_text(text: str, file: TextIO | None = None) -> None:
    """Prints a text of several lines, in which names are escaped already.

    Args:
        text: The text, such as that of a table.
        file: Stream to print to; None for standard output.
    """
    print_lines(*text.split("\n"), file=file)


class LineFormatter(logging.Formatter):
    """Formats a message of a log as one line, like `print_lines`."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is that of the base class
        """Returns the message of a record with its invisible characters escaped."""
        return escape_name(super().formatMessage(record))


def render_table(table: Table) -> str:
    """Renders a table as plain text, one line per row, without spaces at the end of lines.

    Markup such as `[b]` and emoji codes such as `:cat:` are text here, because they may be names of classes.
    """
    for column in table.columns:
        column.header = _escape_cell(column.header)
        column._cells = list(map(_escape_cell, column.cells))
    console = Console(file=io.StringIO(), width=MAX_WIDTH, color_system=None, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _escape_cell(cell: RenderableType) -> RenderableType:
    return shorten_middle(escape_name(cell), MAX_CELL) if isinstance(cell, str) else cell
