"""The table of the gallery: its columns, read back by a reader that follows the documentation alone."""

from __future__ import annotations

from gallery_samples import list_values, read_columns, tables
from hypothesis import given, settings

from service.report.analysis.gallery import GalleryTable, list_columns


@given(tables())
@settings(max_examples=100)
def test_the_columns_hold_the_values_of_the_table(table: GalleryTable) -> None:
    assert read_columns(list_columns(table)) == list_values(table)
