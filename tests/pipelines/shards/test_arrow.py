"""The Arrow file, byte by byte and column by column."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.errors import DataError
from pipelines.records import RECORD_SCHEMA, Record, compute_checksum
from pipelines.shards import arrow
from pipelines.shards.arrow import ImageBuffer, read_arrow, read_arrow_table, write_arrow

RECORDS = [
    Record(b"one", 1, "a b/ä.png", (1, 3, 1)),
    Record(b"\0\xff", 0, "b", (2, 1, 1), bbox=(0.0, 0.25, 0.5, 1.0)),
    Record(b"three" * 10, 2, "c", (10, 5, 1)),
]


def test_the_file_holds_the_columns_of_the_schema(tmp_path):
    assert write_arrow(tmp_path / "s.arrow", iter(RECORDS)) == 3
    with pa.memory_map(str(tmp_path / "s.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.schema.equals(RECORD_SCHEMA)
    assert table.to_pylist() == [
        {
            "image": record.image,
            "label": record.label,
            "id": record.id,
            "evidence": record.bbox and list(record.bbox),
            "shape": list(record.shape),
            "checksum": compute_checksum(record.image, record.label),
        }
        for record in RECORDS
    ]


def test_the_checksum_never_changes():
    assert compute_checksum(b"three" * 10, 2) == 3230256511454671628
    assert compute_checksum(b"three" * 10, 1) != compute_checksum(b"three" * 10, 2)


def test_equal_records_give_equal_bytes(tmp_path):
    for name in "ab":
        _ = np.full(10_000, ord(name), np.uint8).copy()  # fills the memory that the next buffers reuse
        write_arrow(tmp_path / name, RECORDS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_images_are_stored_without_compression(tmp_path):
    write_arrow(tmp_path / "s", RECORDS)
    assert b"three" * 10 in (tmp_path / "s").read_bytes()


@pytest.mark.parametrize(("limit", "batches"), [(1, [1, 1, 1]), (5, [2, 1]), (55, [3]), (54, [2, 1])])
def test_record_batches_stay_below_the_limit(tmp_path, monkeypatch, limit, batches):
    monkeypatch.setattr(arrow, "BATCH_BYTES", limit)
    assert write_arrow(tmp_path / "s", RECORDS) == 3
    file = pa.ipc.open_file(tmp_path / "s")
    assert [file.get_batch(index).num_rows for index in range(file.num_record_batches)] == batches
    assert file.read_all().column("id").to_pylist() == ["a b/ä.png", "b", "c"]


def test_every_record_batch_is_measured_separately(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "BATCH_BYTES", 4)
    write_arrow(tmp_path / "s", [Record(b"xx", 0, str(index), (1, 2, 1)) for index in range(6)])
    file = pa.ipc.open_file(tmp_path / "s")
    assert [file.get_batch(index).num_rows for index in range(file.num_record_batches)] == [2, 2, 2]


def test_images_are_kept_once(tmp_path, monkeypatch):
    size = 10**6
    monkeypatch.setattr(arrow, "BATCH_BYTES", 8 * size)
    records = (Record(bytes(size), 0, str(row), (1, 1, 1)) for row in range(30))
    tracemalloc.start()
    try:
        write_arrow(tmp_path / "s", records)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (8 + 3) * size  # a record batch, and the image that is added


def test_memory_that_is_used_again_holds_nothing_of_a_shard_that_failed(tmp_path):
    images = ImageBuffer()

    def fail_late():
        yield Record(b"left over", 0, "x", (1, 1, 1))
        raise OSError

    with pytest.raises(OSError, match=r"^$"):
        write_arrow(tmp_path / "failed", fail_late(), images)
    write_arrow(tmp_path / "again", RECORDS, images)
    write_arrow(tmp_path / "new", RECORDS)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "new").read_bytes()


def test_a_file_without_rows(tmp_path):
    assert write_arrow(tmp_path / "s", []) == 0
    columns, table = read_arrow(tmp_path / "s")
    assert (columns.rows, table.num_rows) == (0, 0)


def test_empty_images(tmp_path):
    write_arrow(tmp_path / "s", [Record(b"", 0, "", (0, 0, 0))] * 2)
    columns, _ = read_arrow(tmp_path / "s")
    assert columns.sizes.tolist() == [0, 0]


@pytest.mark.parametrize("limit", [1, 55, 2**20])
def test_the_columns_say_where_the_images_are(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(arrow, "BATCH_BYTES", limit)
    write_arrow(tmp_path / "s", RECORDS)
    columns, table = read_arrow(tmp_path / "s")
    content = (tmp_path / "s").read_bytes()
    places = zip(columns.starts.tolist(), columns.sizes.tolist(), strict=True)
    assert [content[start : start + size] for start, size in places] == [record.image for record in RECORDS]
    assert table["id"].to_pylist() == [record.id for record in RECORDS]
    assert read_arrow_table(tmp_path / "s").equals(table)


def test_the_columns_are_read_without_the_images(tmp_path):
    images = [Record(bytes(10**6), 0, str(row), (1, 1, 1)) for row in range(20)]
    write_arrow(tmp_path / "s", images)

    def count_read_bytes():
        return int(Path("/proc/self/io").read_text().split()[1])

    before = count_read_bytes()
    read_arrow_table(tmp_path / "s")
    read_arrow(tmp_path / "s")
    assert count_read_bytes() - before < 10**6


@pytest.mark.parametrize(
    ("column", "buffer", "old", "new"),
    [
        ("id", 2, b"a b/", b"a c/"),
        ("id", 1, b"\x0a\0\0\0", b"\x09\0\0\0"),
        ("evidence", 0, b"\x02", b"\x03"),
        ("evidence", 2, np.float32(0.25).tobytes(), np.float32(0.26).tobytes()),
        ("shape", 2, np.array([10, 5], np.int32).tobytes(), np.array([5, 10], np.int32).tobytes()),
    ],
)
def test_a_change_of_a_column_without_checksums_is_found(tmp_path, column, buffer, old, new):
    write_arrow(tmp_path / "s", RECORDS)
    data = bytearray((tmp_path / "s").read_bytes())
    whole = pa.py_buffer(bytes(data))
    place = pa.ipc.open_file(whole).get_batch(0).column(column).buffers()[buffer]
    start = data.index(old, place.address - whole.address)
    assert start < place.address - whole.address + place.size
    data[start : start + len(old)] = new
    (tmp_path / "s").write_bytes(data)
    with pytest.raises(
        DataError, match=r"undamaged Arrow IPC file. Received: .*s: damaged columns in record batch 0\. Fix"
    ):
        read_arrow(tmp_path / "s")


def test_a_file_without_digests_is_refused(tmp_path):
    write_arrow(tmp_path / "s", RECORDS)
    with pa.OSFile(str(tmp_path / "t"), "wb") as stream, pa.ipc.new_file(stream, RECORD_SCHEMA) as writer:
        writer.write_table(pa.ipc.open_file(tmp_path / "s").read_all())
    with pytest.raises(DataError, match="damaged columns"):
        read_arrow(tmp_path / "t")
