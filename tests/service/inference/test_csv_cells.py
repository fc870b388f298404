"""Names in a CSV file: formulas become text, everything else is read back as it was."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pytest

from service.inference.tables import open_spool

LONG = "x" * 10_000


def write_and_read(path: Path, table: pa.Table) -> list[list[str]]:
    """Writes a table as `glassbox predict` does, and returns header and rows as Python reads them."""
    with open_spool(path, table.schema) as spool:
        spool.put(0, table)
        spool.write()
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize(
    "name",
    [
        "=cmd|' /C calc'!A0",
        "+1+1",
        "-x",
        "-1+2",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        " =1+1",
        "\uff1d1+1",
        "=1;=2",
    ],
)
def test_formulas_become_text_in_cells_and_headers(tmp_path: Path, name: str) -> None:
    table = pa.table({"id": [name], name: pa.array([0.5], pa.float32())})
    assert write_and_read(tmp_path / "out.csv", table) == [["id", f"'{name}"], [f"'{name}", "0.5"]]


@pytest.mark.parametrize(
    "name",
    [
        "cat",
        "a=b",
        "x-y",
        "-1",
        "+2.5e-3",
        ".5",
        "'quoted'",
        'say "no", or\nyes',
        "<script>",
        "\u202eabc",
        "\x1b[31m",
        LONG,
        "",
    ],
)
def test_other_texts_are_read_back_as_they_were(tmp_path: Path, name: str) -> None:
    table = pa.table({"id": [name], "class": ["=1"]})
    assert write_and_read(tmp_path / "out.csv", table)[1] == [name, "'=1"]


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b"], "p": pa.array([-1.5, 1e-30], pa.float32())})
    assert [float(row[1]) for row in write_and_read(tmp_path / "out.csv", table)[1:]] == pytest.approx(
        [-1.5, 1e-30]
    )


def test_a_cell_stays_one_cell_where_semicolons_separate(tmp_path: Path) -> None:
    write_and_read(tmp_path / "out.csv", pa.table({"id": ["a;=1+1"]}))
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file, delimiter=";")) == [["id"], ["a;=1+1"]]
