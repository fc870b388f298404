"""Files that declare terabytes, or images outside of them, are refused without using memory for them."""

from __future__ import annotations

import hashlib
import io
import json
import resource
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import xxhash
from shard_samples import make_record, write_shards

from pipelines.errors import DataError
from pipelines.shards.arrow import check_ranges, read_arrow, write_arrow
from pipelines.shards.files import LocalFiles
from pipelines.shards.manifest import ShardFile, StoredFile, load_manifest
from pipelines.shards.markers import read_marker
from pipelines.shards.split_index import IndexPart, open_table, read_part, serialize_rows
from pipelines.shards.tfrecord import read_index, write_tfrecord
from pipelines.sources.tfexample import DamagedRecordError, compute_masked_crc, stream_records

TERABYTES = 1 << 43
ALLOWED = 1 << 24  # bytes of memory for a refusal
RECORDS = [make_record(np.full((4, 4, 3), row, np.uint8), 0, f"row {row}") for row in range(3)]


@contextmanager
def bound_memory() -> Iterator[None]:
    """Checks that the memory of this process, as far as it is used, hardly grows within the block."""
    tracemalloc.start()
    before = measure_peak()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < ALLOWED  # of Python and NumPy
    assert measure_peak() - before < ALLOWED


def measure_peak() -> int:
    """Returns the largest amount of memory that this process has used, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def list_declarations(content: bytes) -> Iterator[bytes]:
    """Yields a file with each of its numbers of eight bytes replaced by terabytes."""
    for offset in range(8, len(content) - 8, 8):
        if any(content[offset : offset + 8]):
            yield content[:offset] + struct.pack("<q", TERABYTES) + content[offset + 8 :]


def test_a_shard_may_declare_anything_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_arrow(path, RECORDS)
    refused = 0
    with bound_memory():
        for content in list_declarations(path.read_bytes()):
            path.write_bytes(content)
            try:
                read_arrow(path)
            except DataError:
                refused += 1
    assert refused > 20


def test_an_index_of_tfrecord_may_declare_anything_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "a.index.arrow"
    write_tfrecord(tmp_path / "a.tfrecord", path, RECORDS)
    size = (tmp_path / "a.tfrecord").stat().st_size
    refused = 0
    with bound_memory():
        for content in list_declarations(path.read_bytes()):
            path.write_bytes(content)
            try:
                columns, _ = read_index(path, size)
            except DataError:
                refused += 1
            else:
                assert (columns.starts + columns.sizes).max() <= size
    assert refused > 20


def test_an_index_with_a_digest_that_fits_may_declare_anything_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "train.rows.arrow"
    write_arrow(tmp_path / "a.arrow", RECORDS)
    columns, _ = read_arrow(tmp_path / "a.arrow")
    shard = ShardFile(
        file="a.arrow", bytes=(tmp_path / "a.arrow").stat().st_size, sha256="0" * 64, rows=len(RECORDS)
    )
    refused = 0
    with bound_memory():
        for content in list_declarations(serialize_rows(columns)):
            path.write_bytes(content)
            stored = StoredFile(file=path.name, bytes=len(content), sha256="0" * 64)
            part = IndexPart(stored, 0, len(content), xxhash.xxh3_64_intdigest(content))
            try:
                read = read_part(LocalFiles(tmp_path), part, shard)
            except DataError:
                refused += 1
            else:
                assert (read.starts + read.sizes).max() <= shard.bytes
    assert refused > 10


def test_a_table_may_declare_anything_anywhere(tmp_path: Path) -> None:
    """The manifest has the digests of the altered tables, as if somebody had made both."""
    folder = write_shards(tmp_path / "set", ("a",), {"train": RECORDS}, shard_rows=1)
    manifest = load_manifest(folder)
    table = folder / manifest.splits["train"].table.file
    refused = 0
    with bound_memory():
        for content in list_declarations(table.read_bytes()):
            table.write_bytes(content)
            split = manifest.splits["train"]
            stored = split.table.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
            altered = manifest.model_copy(
                update={"splits": {"train": split.model_copy(update={"table": stored})}}
            )
            try:
                opened = open_table(LocalFiles(folder), altered, "train")
                for number in range(len(opened.rows)):
                    opened.read_columns(number)
            except DataError:
                refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    ("starts", "sizes"),
    [
        ([0, 90], [10, 11]),
        ([-1], [5]),
        ([0], [-5]),
        ([101], [0]),
        ([100], [2**63 - 50]),
        ([0, 5], [2**62, 1]),
    ],
)
def test_images_outside_of_their_file_are_refused(starts: list[int], sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="outside"):
        check_ranges(np.array(starts, np.int64), np.array(sizes, np.int64), 100)
    check_ranges(np.array([0, 90]), np.array([10, 10]), 100)


@pytest.mark.parametrize("length", [TERABYTES, 2**63 - 1, 2**64 - 20])
def test_a_record_of_a_stream_may_declare_terabytes(length: int) -> None:
    header = struct.pack("<Q", length)
    file = io.BufferedReader(io.BytesIO(header + compute_masked_crc(header) + bytes(100)))
    with bound_memory(), pytest.raises(DamagedRecordError, match="cut off"):
        list(stream_records(file))


def test_a_marker_may_declare_terabytes() -> None:
    shard = {"file": "a.arrow", "bytes": 1, "sha256": "0" * 64, "rows": 1}
    result = {"shard": shard, "class_counts": [1], "moments": [[0, 0, 0]] * 3, "rejected": 0}
    content = json.dumps({"result": result, "row_part": TERABYTES}).encode() + b"\nabc"
    with bound_memory():
        assert read_marker(io.BytesIO(content)) is None
    assert read_marker(io.BytesIO(content.replace(str(TERABYTES).encode(), b"3"))) is not None
