"""The marker of a complete shard: its result, its part of the table of rows, and its rejected candidates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, NamedTuple

from pydantic import AliasChoices, Field, ValidationError

from pipelines.shards.manifest import ShardFile
from pipelines.shards.split_index import index_shard
from pipelines.spec import Spec
from pipelines.storage import parse_json


class ShardResult(Spec):
    """Result of building one shard.

    Attributes:
        shard: Entry of the shard in the manifest; the file of a shard without rows does not exist.
        class_counts: Rows per class, in the order of the classes.
        pixel_sums: `[3][3]`: for R, G and B the number of pixels, their sum and the sum of their squares;
            zeros if nothing was decoded. Markers call them `moments`.
        rejected: Number of candidates that are not in the shard.
        notices: Number of images per kind of notice.
    """

    shard: ShardFile
    class_counts: tuple[int, ...]
    pixel_sums: tuple[tuple[int, ...], ...] = Field(
        validation_alias=AliasChoices("moments", "pixel_sums"), serialization_alias="moments"
    )
    rejected: int
    notices: dict[str, int] = Field(default_factory=dict)


class Marker(NamedTuple):
    """Everything that is known about a complete shard, without opening it.

    Attributes:
        result: Result of building the shard.
        row_part: The shard's part of the table of rows (see `pipelines.shards.split_index.index_shard`).
        rejected_lines: A line of JSON per rejected candidate, each with its line break.
    """

    result: ShardResult
    row_part: bytes
    rejected_lines: tuple[str, ...]

    def encode(self) -> bytes:
        """Returns the content of the marker: a line of JSON, the part of the table, and the other lines."""
        header = json.dumps({"result": self.result.model_dump(by_alias=True), "row_part": len(self.row_part)})
        return b"".join([f"{header}\n".encode(), self.row_part, *map(str.encode, self.rejected_lines)])


def read_result(file: IO[bytes]) -> ShardResult | None:
    """Reads the result at the start of a marker; None if the marker is damaged."""
    header = _read_header(file)
    return None if header is None else header[0]


def read_marker(file: IO[bytes]) -> Marker | None:
    """Reads a whole marker; None if it is damaged."""
    header = _read_header(file)
    if header is None:
        return None
    result, part_bytes = header
    row_part = file.read(part_bytes)
    if len(row_part) != part_bytes:
        return None
    lines = file.read().decode("utf-8", "replace").splitlines(keepends=True)
    return Marker(result, row_part, tuple(lines))


def _read_header(file: IO[bytes]) -> tuple[ShardResult, int] | None:
    try:
        content = parse_json(file.readline())
        return ShardResult.model_validate(content["result"], strict=False), int(content["row_part"])
    except (ValidationError, ValueError, KeyError, TypeError, OverflowError):
        return None


def get_marker_name(file: str) -> str:
    """Returns the name of the marker of a shard, given the name of the shard's file."""
    return f"{file}.done"


def read_row_part(directory: Path, shard: ShardFile) -> bytes:
    """Reads a shard's part of the table of rows; empty for a shard without rows."""
    return index_shard(directory, shard) if shard.rows else b""
