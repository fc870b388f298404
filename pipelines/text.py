"""Tables and names for the terminal: one row per line, whatever is in a name."""

from __future__ import annotations

import io
import unicodedata

from rich.console import Console, RenderableType
from rich.table import Table

MAX_WIDTH = 10_000  # columns: rows are never wrapped, so that they can be searched
# Unicode categories that break lines or are invisible: controls, formats, surrogates, separators.
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def escape_name(name: str) -> str:
    """Replaces line breaks and other control characters by backslash escapes."""
    if name.isascii() and name.isprintable():
        return name
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _ESCAPED
        else character
        for character in name
    )


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
    return escape_name(cell) if isinstance(cell, str) else cell
