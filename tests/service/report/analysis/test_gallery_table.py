"""The table of the gallery: its encoding, read back by a decoder that follows the documentation alone."""

from __future__ import annotations

import numpy as np
import pytest
from gallery_samples import decode, list_columns, tables
from hypothesis import given, settings

from service.report.analysis.gallery import GalleryTable, encode_table


@given(tables())
@settings(max_examples=100, deadline=None)
def test_a_table_is_decoded_to_the_same_values(table: GalleryTable) -> None:
    decoded = decode(encode_table(table))
    expected = list_columns(table)
    assert {name: decoded[name] for name in expected} == expected


def test_regular_rows_and_names_take_next_to_no_space() -> None:
    count = 10_000
    zeros = np.zeros(count, np.int64)
    table = GalleryTable(
        rows=np.arange(count),
        truths=zeros,
        classes=2,
        top=zeros[:, None],
        rests=zeros[:, None],
        losses=zeros,
        ids=[f"validation/{row:06d}.png" for row in range(count)],
    )
    assert len(encode_table(table)["data"]) < count / 2


@pytest.mark.parametrize(("largest", "width"), [(255, 1), (256, 2), (65_535, 2), (65_536, 4)])
def test_columns_are_as_wide_as_their_largest_value(largest: int, width: int) -> None:
    column = np.array([largest])
    table = GalleryTable(np.array([0]), column, largest + 1, column[:, None], column[:, None], column)
    assert dict(encode_table(table)["columns"])["truth"] == width
