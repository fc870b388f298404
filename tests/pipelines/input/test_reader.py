"""Random access to shards, and every way in which a shard set can be damaged."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from shard_samples import write_shards

from pipelines.errors import DataError
from pipelines.input import reader as reader_module
from pipelines.input.reader import ShardReader
from pipelines.records import RECORD_SCHEMA, Record
from pipelines.shards.manifest import Manifest, load_manifest

CLASSES = ("ant", "bee", "cat")
RECORDS = [
    Record(
        f"bytes of {row}".encode(),
        row % 3,
        f"id-{row}",
        (row + 1, 2, 3),
        None if row % 2 else (0.0, 0.25, 0.5, 1.0),
    )
    for row in range(8)
]
FORMATS = ("arrow", "tfrecord")


@pytest.fixture(params=FORMATS)
def directory(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Shards of 3, 3 and 2 rows, in both formats."""
    return write_shards(tmp_path / "shards", CLASSES, {"train": RECORDS}, 3, format=request.param)


@pytest.fixture
def arrow(tmp_path: Path) -> Path:
    """The same as Arrow files."""
    return write_shards(tmp_path / "arrow", CLASSES, {"train": RECORDS}, 3)


def change_manifest(directory: Path, index: int, **changes: object) -> None:
    """Changes the entry of one shard in the manifest."""
    content = load_manifest(directory).model_dump()
    content["splits"]["train"]["shards"][index].update(changes)
    Manifest.model_validate(content).save(directory)


def replace_bytes(path: Path, old: bytes, new: bytes, start: int = 0) -> None:
    """Replaces the first `old` in a file from `start` on."""
    data = path.read_bytes()
    at = data.index(old, start)
    path.write_bytes(data[:at] + new + data[at + len(old) :])


def test_rows_come_in_the_requested_order_across_shards(directory: Path) -> None:
    reader = ShardReader(directory, "train")
    rows = [7, 0, 3, 3, 2, 6, 1, 5, 4]
    assert (reader.rows, reader.shard_rows) == (8, (3, 3, 2))
    assert reader.read_images(rows) == [RECORDS[row].image for row in rows]
    assert reader.read_ids(np.array(rows)) == [RECORDS[row].id for row in rows]
    assert reader.read_bboxes(rows) == [RECORDS[row].bbox for row in rows]
    assert reader.read_shapes(rows).tolist() == [list(RECORDS[row].shape) for row in rows]
    assert reader.read_shapes(rows).dtype == np.int32


def test_images_are_views_of_the_mapped_file(directory: Path) -> None:
    (image,) = ShardReader(directory, "train").read_images([4])
    assert isinstance(image, memoryview)
    assert (image.readonly, image.format, image.contiguous) == (True, "B", True)
    (path,) = [
        path for path in directory.iterdir() if path.suffix != ".json" and b"bytes of 4" in path.read_bytes()
    ]
    with path.open("r+b") as file:
        file.seek(path.read_bytes().index(b"bytes of 4"))
        file.write(b"BYTES")
    assert image == b"BYTES of 4"


def test_both_formats_give_the_same_rows(tmp_path: Path, arrow: Path) -> None:
    one = ShardReader(arrow, "train")
    other = ShardReader(
        write_shards(tmp_path / "tf", CLASSES, {"train": RECORDS}, 5, format="tfrecord"), "train"
    )
    rows = range(8)
    assert one.read_images(rows) == other.read_images(rows)
    assert one.read_ids(rows) == other.read_ids(rows)
    assert one.read_bboxes(rows) == other.read_bboxes(rows)
    assert one.read_shapes(rows).tolist() == other.read_shapes(rows).tolist()
    assert one.labels.tolist() == other.labels.tolist()


def test_labels_are_in_memory_in_row_order(directory: Path) -> None:
    labels = ShardReader(directory, "train").labels
    assert labels.dtype == np.int32
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_no_rows_give_nothing(arrow: Path) -> None:
    reader = ShardReader(arrow, "train")
    assert (
        reader.read_images([]),
        reader.read_ids([]),
        reader.read_bboxes([]),
        reader.read_shapes([]).shape,
    ) == (
        [],
        [],
        [],
        (0, 3),
    )


def test_an_empty_split_has_no_rows(tmp_path: Path) -> None:
    reader = ShardReader(write_shards(tmp_path / "shards", CLASSES, {"train": []}), "train")
    assert (reader.rows, reader.labels.tolist(), reader.read_ids([]), reader.shard_rows) == (0, [], [], ())


def test_shards_are_mapped_again_if_there_are_too_many(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "MAPPED_SHARDS", 1)
    reader = ShardReader(directory, "train")
    rows = [0, 7, 3, 1, 6]
    assert reader.read_images(rows) == [RECORDS[row].image for row in rows]


def test_a_reader_keeps_no_file_open(directory: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    reader = ShardReader(directory, "train")
    reader.read_images(range(8))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("row", [-1, 8])
def test_a_row_that_does_not_exist_is_named(arrow: Path, row: int) -> None:
    with pytest.raises(DataError, match=rf"'train' from 0 to 7. Received: row={row}\."):
        ShardReader(arrow, "train").read_images([0, row])


def test_an_unknown_split_is_named(arrow: Path) -> None:
    with pytest.raises(DataError, match="split=test"):
        ShardReader(arrow, "test")


def test_a_newer_manifest_is_named(arrow: Path) -> None:
    load_manifest(arrow).model_copy(update={"version": 99}).save(arrow)
    with pytest.raises(DataError, match="version=99"):
        ShardReader(arrow, "train")


def test_a_missing_file_is_named(directory: Path) -> None:
    path = next(directory.glob("train-00003*"))
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name} \(missing\)"):
        ShardReader(directory, "train")


@pytest.mark.parametrize("damage", ["image", "label", "checksum"])
def test_a_changed_row_is_named_when_it_is_read(directory: Path, damage: str) -> None:
    path = next(directory.glob("train-00003.*w"))  # its columns: the Arrow file, or the index
    if damage == "image":
        replace_bytes(
            next(path for path in directory.glob("train-00003*") if b"bytes of 4" in path.read_bytes()),
            b"bytes of 4",
            b"bytes oF 4",
        )
    elif damage == "label":
        replace_bytes(path, np.array([0, 1, 2], np.int32).tobytes(), np.array([0, 2, 2], np.int32).tobytes())
    else:
        (checksum,) = (c for c in pa.ipc.open_file(path).read_all()["checksum"][1:2].to_pylist())
        replace_bytes(path, np.uint64(checksum).tobytes(), np.uint64(checksum ^ 1).tobytes())
    reader = ShardReader(directory, "train")
    assert reader.read_images([0, 1, 2, 3, 5, 6, 7]) == [RECORDS[row].image for row in (0, 1, 2, 3, 5, 6, 7)]
    files = {
        "arrow": r"train-00003\.arrow",
        "tfrecord": r"train-00003\.tfrecord or its index train-00003\.index\.arrow",
    }
    received = rf"{files[reader.manifest.format]}: row=1 of the file, row=4 of split 'train', id=id-4\."
    with pytest.raises(DataError, match=rf"image and label as they were written. Received: .*/{received}"):
        reader.read_images([5, 4])


def test_a_label_that_changes_while_the_reader_is_open_is_noticed(arrow: Path) -> None:
    """The checksum covers the labels in memory."""
    reader = ShardReader(arrow, "train")
    reader.labels[4] = 0
    with pytest.raises(DataError, match="row=4"):
        reader.read_images([4])


@pytest.mark.parametrize("damage", ["all", "footer", "batch"])
def test_a_file_of_the_right_size_that_is_not_arrow_is_named(arrow: Path, damage: str) -> None:
    path = arrow / "train-00003.arrow"
    whole = path.read_bytes()
    cut = {
        "all": slice(0, None),
        "footer": slice(len(whole) - 200, None),
        "batch": slice(whole.index(b"digest") - 99, whole.index(b"digest")),
    }[damage]
    broken = bytearray(whole)
    broken[cut] = b"\xff" * len(broken[cut])
    path.write_bytes(broken)
    with pytest.raises(DataError, match=r"Arrow IPC file. Received: .*train-00003\.arrow"):
        ShardReader(arrow, "train")


def test_a_file_with_another_number_of_rows_is_named(directory: Path) -> None:
    change_manifest(directory, 1, rows=4)
    with pytest.raises(DataError, match=r"4 rows. Received: .*train-00003\..*: rows=3\."):
        ShardReader(directory, "train")


def test_a_file_with_other_columns_is_named(arrow: Path) -> None:
    path = arrow / "train-00000.arrow"
    batch = pa.record_batch({"image": [b"x"], "label": [1]})
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)
    change_manifest(arrow, 0, bytes=path.stat().st_size, rows=1)
    with pytest.raises(
        DataError, match=rf"train-00000\.arrow: the columns are not {', '.join(RECORD_SCHEMA.names)}\."
    ):
        ShardReader(arrow, "train")
