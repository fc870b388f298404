"""Lists of files that exceed memory have the rows and the order of lists in memory."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import DataError
from pipelines.sources import layout, listing, open_source
from pipelines.sources.folder import SCHEMA
from pipelines.sources.layout import (
    arrange_batches,
    arrange_files,
    build_batches,
    compute_fingerprint,
    divide_table,
    find_labels,
)
from pipelines.sources.listing import DiskTable, TablePart, TableSorter, TableWriter

CHUNK = 4
paths = st.lists(
    st.tuples(
        st.builds(
            b"%s/%s/%s".__mod__,
            st.tuples(
                st.sampled_from([b"train", b"valid", b"other"]),
                st.sampled_from([b"cat", b"dog", b".hidden", b"Cat"]),
                st.sampled_from([b"%d.jpg" % number for number in range(9)] + [b".x.jpg", b"notes.txt"]),
            ),
        ),
        st.integers(0, 10**6),
    ),
    max_size=40,
)
ALWAYS = [(b"%s/%s/0.jpg" % (split, name), 1) for split in (b"train", b"valid") for name in (b"cat", b"dog")]
SPLITS = {"train": "train", "validation": "valid"}


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr(listing, "CHUNK", CHUNK)
    monkeypatch.setattr(layout, "CHUNK", CHUNK)
    monkeypatch.setattr(listing, "PARTITION_BITS", 2)


@settings(max_examples=50)
@given(paths)
def test_an_arrangement_on_disk_is_that_in_memory(rows):
    rows = [*ALWAYS, *rows]
    batches = list(build_batches(rows, SCHEMA))
    in_memory = arrange_files("x", pa.Table.from_batches(batches, SCHEMA), SPLITS)
    parts = [batch.slice(start, 3) for batch in batches for start in range(0, len(batch), 3)]
    on_disk = arrange_batches("x", parts, SCHEMA, SPLITS, memory_bytes=0)
    assert (on_disk.classes, on_disk.notes) == (in_memory.classes, in_memory.notes)
    assert isinstance(on_disk.splits["train"], DiskTable)
    for split, table in in_memory.splits.items():
        other = on_disk.splits[split]
        assert len(other) == len(table)
        assert other.slice(0, len(table)).to_pylist() == table.to_pylist()
        assert find_labels(other).tolist() == find_labels(table).tolist()
    is_held_out = np.arange(len(in_memory.splits["train"])) % 3 == 0
    divided = divide_table({"train": on_disk.splits["train"]}, is_held_out)
    expected = divide_table({"train": in_memory.splits["train"]}, is_held_out)
    for split, table in expected.items():
        assert divided[split].slice(0, len(table)).to_pylist() == table.to_pylist()


def make_table(count):
    return pa.table(
        {"path": pa.array([b"%05d" % n for n in range(count)], pa.large_binary()), "n": range(count)}
    )


@pytest.mark.parametrize("count", [1, CHUNK, 3 * CHUNK + 1])
def test_every_range_of_a_table_on_disk_can_be_read(count):
    table = make_table(count)
    writer = TableWriter(table.schema, memory_bytes=0)
    writer.add(table)
    stored = writer.finish()
    assert isinstance(stored, DiskTable)
    for start in range(count + 1):
        for length in range(count - start + 1):
            assert stored.slice(start, length).to_pylist() == table.slice(start, length).to_pylist()
    batches = list(stored.to_batches(max_chunksize=3))
    assert pa.Table.from_batches(batches).to_pylist() == table.to_pylist()
    assert pickle.loads(pickle.dumps(stored)).to_pylist() == table.to_pylist()
    fingerprints = [compute_fingerprint((), {"train": rows}, ["n"]) for rows in (stored, table)]
    assert fingerprints[0] == fingerprints[1]


@pytest.mark.parametrize("memory_bytes", [0, 10**9])
def test_rows_with_the_same_hash_are_sorted_by_path_and_keep_their_order(memory_bytes):
    rows = [(b"b", 1, 7), (b"a", 2, 7), (b"c", 3, 2**63), (b"b", 4, 7), (b"z", 5, 0)]
    schema = pa.schema([("path", pa.large_binary()), ("n", pa.int64()), ("hash", pa.uint64())])
    sorter = TableSorter(schema, memory_bytes)
    for batch in build_batches(rows, schema):
        for start in range(len(batch)):
            sorter.add(batch.slice(start, 1))
    order = [row["n"] for batch in sorter.iterate_batches() for row in batch.to_pylist()]
    assert order == [5, 2, 1, 4, 3]


def test_a_part_holds_only_its_rows_under_their_numbers():
    table = make_table(20_000)
    part = pickle.loads(pickle.dumps(TablePart(table, 5_000, 5_010)))
    assert part.slice(5_002, 3).to_pylist() == table.slice(5_002, 3).to_pylist()
    assert len(pickle.dumps(part)) < 2_000


@pytest.fixture
def folder(tmp_path):
    for name in ("cat/deep", "dog"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("cat/0.jpg", "cat/deep/1.jpg", "dog/2.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    for name in ("cat/deep", "cat", "dog"):
        os.utime(tmp_path / name, (1, 1))  # clocks of file systems are coarse
    return tmp_path


def test_an_unchanged_folder_passes(folder):
    open_source(f"folder:{folder}").check_unchanged()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "cat/deep/new.jpg").touch(),
        lambda folder: (folder / "dog/2.jpg").unlink(),
        lambda folder: (folder / "cat/deep").rename(folder / "cat/other"),
    ],
)
def test_files_added_or_removed_are_noticed_without_a_second_listing(folder, change):
    source = open_source(f"folder:{folder}")
    change(folder)
    with pytest.raises(DataError, match="changed since the build began"):
        source.check_unchanged()


def test_a_file_of_another_size_is_noticed_when_it_is_read(folder):
    source = open_source(f"folder:{folder}")
    (folder / "dog/2.jpg").write_bytes(b"longer than before")
    with pytest.raises(DataError, match=r"dog/2.jpg: bytes=18, before 9 \(changed since the build began\)"):
        list(source.read("train", 0, 3))


def test_a_selection_reads_the_same_files(folder):
    source = open_source(f"folder:{folder}")
    part = pickle.loads(pickle.dumps(source.select("train", 1, 3)))
    assert list(part.read("train", 1, 3)) == list(source.read("train", 1, 3))
