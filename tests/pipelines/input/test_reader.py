"""Random access to shards, and every way a shard file can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tiny_shards import write_shard

from pipelines.errors import DataError
from pipelines.input.reader import ShardReader
from pipelines.records import Example
from pipelines.shards.manifest import Manifest, load_manifest

EXAMPLES = [Example(f"bytes of {row}".encode(), row % 3, f"id-{row}", None if row % 2 else (0.0, 0.25, 0.5, 1.0)) for row in range(8)]


@pytest.fixture
def directory(write_shards) -> Path:
    return write_shards(EXAMPLES, shard_rows=3)  # shards of 3, 3 and 2 rows in record batches of 2, 1, 2, 1 and 2


def with_shard(directory: Path, index: int, **changes: object) -> None:
    """Changes what the manifest says of one shard."""
    manifest = load_manifest(directory)
    content = manifest.model_dump()
    content["splits"]["train"]["shards"][index].update(changes)
    Manifest.model_validate(content).save(directory)


def test_rows_come_in_the_order_asked_for_across_shards_and_record_batches(directory: Path) -> None:
    reader = ShardReader(directory, "train")
    rows = [7, 0, 3, 3, 2, 6, 1, 5, 4]
    assert reader.rows == 8
    assert reader.images(rows) == [EXAMPLES[row].image for row in rows]
    assert reader.ids(np.array(rows)) == [EXAMPLES[row].id for row in rows]
    assert reader.evidence(rows) == [EXAMPLES[row].evidence for row in rows]
    assert all(type(image) is bytes for image in reader.images(rows))


def test_labels_are_in_memory_in_row_order(directory: Path) -> None:
    labels = ShardReader(directory, "train").labels
    assert labels.dtype == np.int32
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_no_rows_give_nothing(directory: Path) -> None:
    assert ShardReader(directory, "train").images([]) == []


def test_an_empty_split_has_no_rows(write_shards) -> None:
    reader = ShardReader(write_shards([]), "train")
    assert (reader.rows, reader.labels.tolist(), reader.ids([])) == (0, [], [])


def test_a_shard_without_rows_is_passed_over(write_shards, directory: Path) -> None:
    empty = directory / "train-003.arrow"
    with_shard(directory, 1, file=empty.name, rows=0, bytes=write_shard(empty, []).bytes)
    assert ShardReader(directory, "train").ids(range(5)) == ["id-0", "id-1", "id-2", "id-6", "id-7"]


@pytest.mark.parametrize("row", [-1, 8])
def test_a_row_that_is_not_there_is_named(directory: Path, row: int) -> None:
    with pytest.raises(DataError, match=rf"'train' from 0 to 7. Received: row={row}\."):
        ShardReader(directory, "train").images([0, row])


def test_an_unknown_split_is_named(directory: Path) -> None:
    with pytest.raises(DataError, match="split=test"):
        ShardReader(directory, "test")


def test_a_missing_file_is_named(directory: Path) -> None:
    (directory / "train-003.arrow").unlink()
    with pytest.raises(DataError, match=r"train-003\.arrow \(missing\)"):
        ShardReader(directory, "train")


def test_a_file_cut_short_is_named(directory: Path) -> None:
    path = directory / "train-006.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(DataError, match=rf"{len(whole)} bytes. Received: .*train-006\.arrow: bytes={len(whole) - 10}\."):
        ShardReader(directory, "train")


@pytest.mark.parametrize("damage", ["all", "footer", "schema"])
def test_a_file_of_the_right_size_that_is_not_arrow_is_named(directory: Path, damage: str) -> None:
    path = directory / "train-003.arrow"
    whole = path.read_bytes()
    cut = {"all": slice(0, None), "footer": slice(len(whole) - 200, None), "schema": slice(0, 400)}[damage]
    broken = bytearray(whole)
    broken[cut] = b"\xff" * len(broken[cut])
    path.write_bytes(broken)
    with pytest.raises(DataError, match=r"Arrow IPC file. Received: .*train-003\.arrow"):
        ShardReader(directory, "train")


def test_a_file_with_another_number_of_rows_is_named(directory: Path) -> None:
    with_shard(directory, 1, rows=4)
    with pytest.raises(DataError, match=r"4 rows. Received: .*train-003\.arrow: rows=3\."):
        ShardReader(directory, "train")


def test_a_file_with_other_columns_is_named(directory: Path) -> None:
    path = directory / "train-000.arrow"
    batch = pa.record_batch({"image": [b"x"], "label": [1]})
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)
    with_shard(directory, 0, bytes=path.stat().st_size, rows=1)
    with pytest.raises(DataError, match=r"columns image, label, id, evidence .* Received: .*train-000\.arrow"):
        ShardReader(directory, "train")


def test_another_format_is_named(directory: Path) -> None:
    load_manifest(directory).model_copy(update={"format": "tfrecord"}).save(directory)
    with pytest.raises(DataError, match="format=tfrecord"):
        ShardReader(directory, "train")
