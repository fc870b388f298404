"""Writes one Parquet or CSV file from pieces of a large table that arrive in any order."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow import csv, feather
from pyarrow import parquet as pq

from pipelines.shards.output import report_write_errors
from pipelines.storage import replace_file
from service.inference.csv_cells import neutralise_cells

GROUP_VALUES = 2**24  # values per row group of Parquet: 64 MiB of float32
GROUP_ROWS = 2**16


class TableSpool:
    """Numbered pieces of a table on disk. Created by `open_spool`."""

    def __init__(self, folder: Path, out: Path, schema: pa.Schema) -> None:
        self._folder = folder
        self._out = out
        self._schema = schema
        self._count = 0

    def put(self, index: int, piece: pa.Table) -> None:
        """Stores the piece with a number.

        Raises:
            ConfigError: The disk is full.
        """
        with report_write_errors(self._out.parent):
            feather.write_feather(piece, str(self._folder / f"{index}.arrow"), "uncompressed")
        self._count += 1

    def write(self) -> None:
        """Writes the pieces 0, 1, 2 ... as one file, completely or not at all.

        Raises:
            ConfigError: The file cannot be written.
        """
        is_csv = self._out.suffix == ".csv"
        writer_class = csv.CSVWriter if is_csv else pq.ParquetWriter
        prepare = neutralise_cells if is_csv else _keep
        with (
            report_write_errors(self._out.parent),
            replace_file(self._out) as temporary,
            writer_class(str(temporary), prepare(self._schema.empty_table()).schema) as writer,
        ):
            for group in self._row_groups():
                writer.write_table(prepare(group))

    def _row_groups(self) -> Iterator[pa.Table]:
        """Yields the pieces in order, merged to some thousands of rows at a time."""
        limit = min(GROUP_ROWS, GROUP_VALUES // len(self._schema))
        pending: list[pa.Table] = []
        rows = 0
        for index in range(self._count):
            piece = feather.read_table(str(self._folder / f"{index}.arrow"))
            pending.append(piece)
            rows += len(piece)
            if rows >= limit or index == self._count - 1:
                yield pa.concat_tables(pending)
                pending = []
                rows = 0


def _keep(table: pa.Table) -> pa.Table:
    return table


@contextmanager
def open_spool(out: Path, schema: pa.Schema) -> Iterator[TableSpool]:
    """Yields a spool in a temporary directory next to the output file; the directory is removed afterwards.

    Args:
        out: The file to write, which ends in `.parquet` or `.csv`.
        schema: Schema of every piece.

    Raises:
        ConfigError: The directory of `out` cannot be written to.
    """
    with report_write_errors(out.parent):
        folder = tempfile.TemporaryDirectory(
            prefix=f".tmp-{out.name}-", dir=out.parent, ignore_cleanup_errors=True
        )
    with folder as name:
        yield TableSpool(Path(name), out, schema)
