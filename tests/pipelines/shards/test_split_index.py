"""The sidecars of a split: what is written is read, damage is noticed, and their size does not matter."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from shard_samples import write_shards

from pipelines.records import Record
from pipelines.shards.arrow import RowColumns
from pipelines.shards.files import LocalFiles
from pipelines.shards.manifest import Manifest, ShardFile, SplitManifest, StoredFile, load_manifest
from pipelines.shards.split_index import (
    ROW_SCHEMA,
    SetShards,
    SplitFiles,
    index_shard,
    open_table,
    parse_rows,
    serialize_rows,
    write_split,
)


def make_columns(rows: int, first: int = 0) -> RowColumns:
    numbers = np.arange(first, first + rows, dtype=np.int64)
    return RowColumns(
        labels=(numbers % 7).astype(np.int32),
        starts=numbers * 1000,
        sizes=np.full(rows, 900, np.int32),
        checksums=numbers.astype(np.uint64) + 2**63,
        shapes=np.stack([numbers, numbers + 1, numbers * 0 + 3], axis=1).astype(np.int32),
    )


def make_shard(number: int, rows: int, index: StoredFile | None = None, suffix: str = "arrow") -> ShardFile:
    file = f"train-{number:05d}-of-00009.{suffix}"
    return ShardFile(file=file, bytes=10**6 + number, sha256=f"{number:064x}", rows=rows, index=index)


def make_manifest(files: SplitFiles, file_format: str = "arrow") -> Manifest:
    split = SplitManifest(**dict(files), class_counts=(1,), mean=None, std=None)
    texts = dict.fromkeys(("encoding", "source", "fingerprint"), "x")
    return Manifest(
        version=3,
        format=file_format,
        store_size=None,
        classes=("a",),
        splits={"train": split},
        rejected=0,
        **texts,
    )


@pytest.mark.parametrize("rows", [0, 1, 7, 1000])
def test_columns_are_read_as_written(rows: int) -> None:
    columns = make_columns(rows)
    read = parse_rows(serialize_rows(columns))
    for name, values in vars(columns).items():
        assert np.array_equal(getattr(read, name), values)
        assert getattr(read, name).dtype == values.dtype


@pytest.mark.parametrize("file_format", ["arrow", "tfrecord"])
def test_shards_are_read_as_written(tmp_path: Path, file_format: str) -> None:
    """Shards without rows are left out, and the numbers in the names of the others stay."""
    index = None
    shards = []
    for number, rows in enumerate([3, 0, 5, 1]):
        if file_format == "tfrecord":
            name = f"train-{number:05d}-of-00009.index.arrow"
            index = StoredFile(file=name, bytes=50 + number, sha256=f"{number + 16:064x}")
        shards.append(make_shard(number, rows, index, file_format))
    parts = [serialize_rows(make_columns(shard.rows, 10 * number)) for number, shard in enumerate(shards)]
    written = write_split(tmp_path, "train", file_format, zip(shards, parts, strict=True))
    assert (written.rows, written.shard_count) == (9, 3)
    assert written.bytes == sum(file.bytes for shard in shards for file in shard.files)

    files = LocalFiles(tmp_path)
    manifest = make_manifest(written, file_format)
    assert [entry.shard for entry in SetShards(files, manifest)] == [shards[0], shards[2], shards[3]]
    table = open_table(files, manifest, "train")
    assert table.rows.tolist() == [3, 5, 1]
    assert table.read_columns(1).starts.tolist() == [20_000, 21_000, 22_000, 23_000, 24_000]
    assert not np.shares_memory(table.rows, table.bytes)


def test_the_part_of_a_shard_is_a_range_of_the_index(tmp_path: Path) -> None:
    parts = [serialize_rows(make_columns(rows)) for rows in (3, 5)]
    shards = [make_shard(0, 3), make_shard(1, 5)]
    written = write_split(tmp_path, "train", "arrow", zip(shards, parts, strict=True))
    content = (tmp_path / written.index.file).read_bytes()
    for entry, part in zip(SetShards(LocalFiles(tmp_path), make_manifest(written)), parts, strict=True):
        assert entry.part is not None
        assert content[entry.part.start : entry.part.start + entry.part.size] == part
    table = pa.ipc.open_file(tmp_path / written.index.file)
    assert (table.schema, table.num_record_batches) == (ROW_SCHEMA, 2)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["train-00000-of-2.arrow", "train-00001-of-3.arrow"], "does not follow the pattern"),
        (["test-00000.arrow"], "is not the name of a shard of train"),
    ],
)
def test_names_without_a_common_pattern_are_refused(tmp_path: Path, names: list[str], reason: str) -> None:
    part = serialize_rows(make_columns(3))
    shards = [ShardFile(file=name, bytes=1, sha256="00" * 32, rows=3) for name in names]
    with pytest.raises(ValueError, match=reason):
        write_split(tmp_path, "train", "arrow", ((shard, part) for shard in shards))
    assert list(tmp_path.iterdir()) == []


def test_the_same_rows_give_the_same_sidecars_and_digest(tmp_path: Path) -> None:
    records = [Record(f"{row}".encode(), row % 2, str(row), (1, 1, 1)) for row in range(9)]
    one = write_shards(tmp_path / "one", ("a", "b"), {"train": records}, 4)
    other = write_shards(tmp_path / "other", ("a", "b"), {"train": records}, 4)
    assert load_manifest(one).digest() == load_manifest(other).digest()
    changed = [*records[:-1], Record(b"other", 0, "8", (1, 1, 1))]
    third = write_shards(tmp_path / "third", ("a", "b"), {"train": changed}, 4)
    assert load_manifest(one).digest() != load_manifest(third).digest()


def test_the_manifest_is_small_whatever_the_number_of_shards(tmp_path: Path) -> None:
    sizes = []
    for shard_rows in (40, 1):
        records = [Record(b"x", 0, str(row), (1, 1, 1)) for row in range(40)]
        directory = write_shards(tmp_path / str(shard_rows), ("a",), {"train": records}, shard_rows)
        sizes.append(len(json.dumps(load_manifest(directory).model_dump(mode="json"))))
    assert abs(sizes[0] - sizes[1]) < 20


def test_writing_holds_one_shard_at_a_time(tmp_path: Path) -> None:
    """The parts of the index have 15 MB together."""

    def build(shards: int) -> Iterator[tuple[ShardFile, bytes]]:
        for number in range(shards):
            yield make_shard(number, 2000), serialize_rows(make_columns(2000))

    write_split(tmp_path, "train", "arrow", build(1))
    tracemalloc.start()
    write_split(tmp_path, "train", "arrow", build(200))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * 10**6


def test_index_shard_describes_the_file(tmp_path: Path) -> None:
    records = [Record(f"image {row}".encode(), row, str(row), (row, 1, 3)) for row in range(3)]
    directory = write_shards(tmp_path / "set", ("a", "b", "c"), {"train": records})
    (entry,) = SetShards(LocalFiles(directory), load_manifest(directory))
    columns = parse_rows(index_shard(directory, entry.shard))
    content = (directory / entry.shard.file).read_bytes()
    starts = columns.starts.tolist()
    images = [content[start : start + 7] for start in starts]
    assert images == [record.image for record in records]
    assert index_shard(directory, make_shard(0, 0)) == b""
