"""Makes names safe in the cells of a CSV file: no spreadsheet takes one for a formula."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

# What spreadsheets take for the start of a formula, or skip before one
# (https://owasp.org/www-community/attacks/CSV_Injection), full-width forms included
FORMULA = "^[\t\r\n ]*[=+\\-@\uff1d\uff0b\uff0d\uff20\t\r]"
NUMBER = r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"


def neutralise_cells(table: pa.Table) -> pa.Table:
    """Puts an apostrophe in front of texts that a spreadsheet would run as a formula.

    Texts that are numbers, such as a class `-1`, and columns of numbers are left as they are.

    Args:
        table: A table with unique column names.

    Returns:
        The table with changed texts and column names.
    """
    columns = [_neutralise(column) if pa.types.is_string(column.type) else column for column in table.columns]
    return pa.table(columns, names=neutralise_names(table.column_names))


def neutralise_names(names: list[str]) -> list[str]:
    """Returns the names of columns with an apostrophe in front of those that look like a formula."""
    return list(_neutralise(pa.chunked_array([pa.array(names, pa.string())])).to_pylist())


def _neutralise(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    is_formula = pc.and_not(pc.match_substring_regex(texts, FORMULA), pc.match_substring_regex(texts, NUMBER))
    return pc.if_else(is_formula, pc.binary_join_element_wise("'", texts, ""), texts)
