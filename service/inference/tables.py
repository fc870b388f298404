"""A large table that comes in pieces out of order, kept on disk and joined in order to one Parquet or CSV file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow import csv, feather
from pyarrow import parquet as pq

from pipelines.errors import ConfigError
from pipelines.shards.task import writable
from pipelines.storage import replacing

GROUP_VALUES = 2**24  # in a row group of Parquet: 64 MiB of float32
GROUP_ROWS = 2**16


def check_output(out: str | Path, *suffixes: str) -> Path:
    """Makes sure that a file of one of some kinds can be written; an older one will be replaced.

    Returns:
        Its absolute path.

    Raises:
        ConfigError: Its suffix is another, its directory is not there, or it is no file.
    """
    path = Path(out).absolute()
    if path.suffix not in suffixes:
        raise ConfigError(f"an output that ends in {' or '.join(suffixes)}", f"out={out}", "name it so")
    if path.is_dir() or not path.parent.is_dir():
        problem = "a directory" if path.is_dir() else "its directory is not there"
        raise ConfigError(
            "an output file that can be written",
            f"out={out} ({problem})",
            "make its directory, or choose another --out",
        )
    return path


class Pieces:
    """Numbered pieces of a table. See `pieces`."""

    def __init__(self, folder: Path, out: Path, schema: pa.Schema) -> None:
        self._folder, self._out, self._schema = folder, out, schema
        self._count = 0

    def put(self, place: int, piece: pa.Table) -> None:
        """Keeps a piece.

        Raises:
            ConfigError: The disk is full.
        """
        with writable(self._out.parent):
            feather.write_feather(piece, str(self._folder / f"{place}.arrow"), "uncompressed")
        self._count += 1

    def join(self) -> None:
        """Writes the pieces 0, 1, 2 ... as one file, whole or not at all.

        Raises:
            ConfigError: It cannot be written.
        """
        with writable(self._out.parent), replacing(self._out) as temporary:
            opened = csv.CSVWriter if self._out.suffix == ".csv" else pq.ParquetWriter
            with opened(str(temporary), self._schema) as writer:
                for group in self._groups():
                    writer.write_table(group)

    def _groups(self) -> Iterator[pa.Table]:
        """The pieces, some thousands of rows at a time."""
        limit, waiting, rows = min(GROUP_ROWS, GROUP_VALUES // len(self._schema)), [], 0
        for place in range(self._count):
            waiting.append(feather.read_table(str(self._folder / f"{place}.arrow")))
            rows += len(waiting[-1])
            if rows >= limit or place == self._count - 1:
                yield pa.concat_tables(waiting)
                waiting, rows = [], 0


@contextmanager
def pieces(out: Path, schema: pa.Schema) -> Iterator[Pieces]:
    """Yields a place for pieces beside a file; what is there goes with the block.

    Args:
        out: The file to join them to, which ends in `.parquet` or `.csv`.
        schema: Of every piece.

    Raises:
        ConfigError: The directory cannot be written to.
    """
    with writable(out.parent):
        folder = tempfile.TemporaryDirectory(
            prefix=f".tmp-{out.name}-", dir=out.parent, ignore_cleanup_errors=True
        )
    with folder as name:
        yield Pieces(Path(name), out, schema)
