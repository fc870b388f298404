from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipelines.records import RECORD_SCHEMA, Example
from pipelines.shards import arrow
from pipelines.shards.arrow import write_shard

EXAMPLES = [
    Example(b"one", 1, "a b/ä.png"),
    Example(b"\0\xff", 0, "b", evidence=(0.0, 0.25, 0.5, 1.0)),
    Example(b"three" * 10, 2, "c"),
]


def test_rows_come_back_as_written(tmp_path):
    assert write_shard(tmp_path / "s.arrow", iter(EXAMPLES)) == 3
    with pa.memory_map(str(tmp_path / "s.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.schema.equals(RECORD_SCHEMA)
    assert table.to_pylist() == [
        {"image": b"one", "label": 1, "id": "a b/ä.png", "evidence": None},
        {"image": b"\0\xff", "label": 0, "id": "b", "evidence": [0.0, 0.25, 0.5, 1.0]},
        {"image": b"three" * 10, "label": 2, "id": "c", "evidence": None},
    ]


def test_equal_examples_give_equal_bytes(tmp_path):
    for name in "ab":
        _ = np.full(10_000, ord(name), np.uint8).copy()  # dirties the memory the next buffers come from
        write_shard(tmp_path / name, EXAMPLES)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_images_are_stored_as_they_are(tmp_path):
    write_shard(tmp_path / "s", EXAMPLES)
    assert b"three" * 10 in (tmp_path / "s").read_bytes()


@pytest.mark.parametrize(("limit", "batches"), [(1, [1, 1, 1]), (5, [2, 1]), (55, [3]), (54, [2, 1])])
def test_a_batch_ends_before_it_grows_too_large(tmp_path, monkeypatch, limit, batches):
    monkeypatch.setattr(arrow, "BATCH_BYTES", limit)
    assert write_shard(tmp_path / "s", EXAMPLES) == 3
    file = pa.ipc.open_file(tmp_path / "s")
    assert [file.get_batch(index).num_rows for index in range(file.num_record_batches)] == batches
    assert file.read_all().column("id").to_pylist() == ["a b/ä.png", "b", "c"]


def test_every_batch_is_measured_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "BATCH_BYTES", 4)
    write_shard(tmp_path / "s", [Example(b"xx", 0, str(index)) for index in range(6)])
    file = pa.ipc.open_file(tmp_path / "s")
    assert [file.get_batch(index).num_rows for index in range(file.num_record_batches)] == [2, 2, 2]


def test_no_rows(tmp_path):
    assert write_shard(tmp_path / "s", []) == 0
