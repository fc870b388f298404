"""Random access to shards, and every way in which a shard set can be damaged."""

from __future__ import annotations

import gc
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from shard_samples import write_shards

from pipelines import open_file
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
KINDS = [(format, version) for format in FORMATS for version in (2, 3)]


def write_set(directory: Path, format: str = "arrow", version: int = 3) -> Path:
    """Writes shards of 3, 3 and 2 rows."""
    splits = {"train": RECORDS}
    return write_shards(directory / "shards", CLASSES, splits, 3, format=format, version=version)


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def directory(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A set in each format and version."""
    return write_set(tmp_path, *request.param)


@pytest.fixture(params=FORMATS)
def old(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A set of version 2 in each format."""
    return write_set(tmp_path, request.param, version=2)


@pytest.fixture
def arrow(tmp_path: Path) -> Path:
    """A set of Arrow files."""
    return write_set(tmp_path)


@pytest.fixture
def old_arrow(tmp_path: Path) -> Path:
    """A set of Arrow files of version 2."""
    return write_set(tmp_path, version=2)


def find_shard(directory: Path, number: int) -> Path:
    """Returns the file that holds the images of a shard."""
    (path,) = (path for path in directory.glob(f"train-{number:05d}*") if ".index." not in path.name)
    return path


def change_manifest(directory: Path, index: int, **changes: object) -> None:
    """Changes the entry of one shard in a manifest of version 2."""
    content = load_manifest(directory).model_dump()
    content["splits"]["train"]["shards"][index].update(changes)
    Manifest.model_validate(content).save(directory)


def replace_bytes(path: Path, old: bytes, new: bytes, start: int = 0) -> None:
    """Replaces the first `old` in a file from `start` on."""
    data = path.read_bytes()
    at = data.index(old, start)
    path.write_bytes(data[:at] + new + data[at + len(old) :])


# Digest of the manifest and SHA-256 of the files of a set as version 2 wrote it.
OLD_DIGESTS = {
    "arrow": "9aecbd8bbefa17eb7c6f359b7c4ea917c77e1cd42822c630db956f0355ff5ebd",
    "tfrecord": "6850fc3409732f82d6efba734ffd5349cc166c45ac19c754768dfef185a850d5",
}
OLD_FILES = {
    "arrow": {
        "manifest.json": "60184001e8f7b7a3dc72b27e1b2889b707f2d605024b1f81196aa8f7a373f218",
        "train-00000.arrow": "bed4f58a27e13f885f04fb5e7cb5089e6c58bc2de2196520e3d58ec34cf78249",
        "train-00003.arrow": "92dffd4a7d1ab60236759e5f6e955546d323b1da1b8e9f97b59b4afd67f0529d",
        "train-00006.arrow": "742214a1bd17c23ba2e1b4b84db8bb2a758aabf041dec3b1fc110a0141bb8d70",
    },
    "tfrecord": {
        "manifest.json": "0a8664e962f9072272018ef0baf1d3c90935514700be585023784542fc98f4bc",
        "train-00000.index.arrow": "575f107602fcaf78ec71804a8b06dea6774cb2bdf553599d73cd6cfc6d9bd3e3",
        "train-00000.tfrecord": "fbe01031781c7664db253a73f261615034279742ddfa19cedaf743183a7499e7",
        "train-00003.index.arrow": "35a4b5321e313e6ef657b86690f0f66dc687ba857da9f395c92c1ffa8a0dc0a4",
        "train-00003.tfrecord": "818f51135b44bc2e3714f0c2d390dccd7164e00ed4082c407e173522827181eb",
        "train-00006.index.arrow": "8b03d0df2f6355732b5e9464e95685b8ddb424cfaf14d5b3b5c9f1571e03693f",
        "train-00006.tfrecord": "e7b8fd68c844195479461879cc9cf235bcd8eadee93ed191aaf118fc49421a84",
    },
}


@pytest.mark.parametrize("format", FORMATS)
def test_a_set_of_version_2_is_what_it_was(tmp_path: Path, format: str) -> None:
    """Runs remember the digest of their set, and must find it again."""
    directory = write_set(tmp_path, format, version=2)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}
    assert digests == OLD_FILES[format]
    assert load_manifest(directory).digest() == OLD_DIGESTS[format]


def test_rows_come_in_the_requested_order_across_shards(directory: Path) -> None:
    reader = ShardReader(directory, "train")
    rows = [7, 0, 3, 3, 2, 6, 1, 5, 4]
    assert (reader.rows, reader.shard_rows.tolist()) == (8, [3, 3, 2])
    assert reader.read_images(rows) == [RECORDS[row].image for row in rows]
    assert reader.read_ids(np.array(rows)) == [RECORDS[row].id for row in rows]
    assert reader.read_bboxes(rows) == [RECORDS[row].bbox for row in rows]
    assert reader.read_shapes(rows).tolist() == [list(RECORDS[row].shape) for row in rows]
    assert reader.read_shapes(rows).dtype == np.int32


def test_opening_a_set_touches_no_shard(directory: Path) -> None:
    """Version 3 reads labels from the index; both versions open without the shards."""
    for number in (0, 3, 6):
        find_shard(directory, number).unlink()
    reader = ShardReader(directory, "train")
    assert reader.rows == 8
    if reader.manifest.version == 3:
        assert reader.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
        assert reader.read_shapes([4]).tolist() == [[5, 2, 3]]


@pytest.mark.parametrize("is_open", [False, True])
def test_a_shard_that_is_cut_short_is_named(directory: Path, is_open: bool) -> None:
    """A mapped file would end the process with SIGBUS."""
    reader = ShardReader(directory, "train")
    if is_open:
        reader.read_images(range(8))
    path = find_shard(directory, 3)
    os.truncate(path, path.stat().st_size // 4)
    with pytest.raises(DataError, match=rf"{path.name}: bytes={path.stat().st_size}"):
        reader.read_images([0, 4])
    assert reader.read_images([0, 7]) == [RECORDS[0].image, RECORDS[7].image]


def test_an_index_that_is_cut_short_is_named(arrow: Path) -> None:
    reader = ShardReader(arrow, "train")
    reader.read_labels([0])
    os.truncate(arrow / "train.rows.arrow", 600)
    with pytest.raises(DataError, match=r"train\.rows\.arrow: bytes=600 \(truncated\)"):
        reader.read_images([7])


@pytest.mark.parametrize("limit", [1, 2])
def test_few_files_are_open_at_a_time(directory: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(open_file.OpenFiles.__init__, "__defaults__", (limit,))
    monkeypatch.setattr(reader_module, "READ_ROWS", 1)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    reader = ShardReader(directory, "train")
    rows = [0, 7, 3, 1, 6]
    assert reader.read_images(rows) == [RECORDS[row].image for row in rows]
    assert reader.read_images(rows) == [RECORDS[row].image for row in rows]
    assert len(os.listdir("/proc/self/fd")) <= before + limit
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("threads", [1, 2, 3, 20])
def test_images_come_in_order_from_any_number_of_threads(
    arrow: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(reader_module, "PARALLEL_BYTES", 1)
    monkeypatch.setattr(reader_module, "READ_THREADS", threads)
    monkeypatch.setattr(reader_module, "count_process_cpus", lambda: 64)
    reader = ShardReader(arrow, "train")
    rows = [7, 0, 3, 3, 2, 6, 1, 5, 4]
    assert reader.read_images(rows) == [RECORDS[row].image for row in rows]
    replace_bytes(arrow / "train-00003.arrow", b"bytes of 4", b"bytes oF 4")
    with pytest.raises(DataError, match="row=4"):
        reader.read_images(rows)


@pytest.mark.parametrize(
    ("allowed", "kept"), [(1024, 128), (20_000, 2500), (2**20, 4096), (-1, 4096), (4, 1)]
)
def test_open_files_are_a_share_of_what_the_process_may_open(
    monkeypatch: pytest.MonkeyPatch, allowed: int, kept: int
) -> None:
    monkeypatch.setattr(open_file.resource, "getrlimit", lambda kind: (allowed, allowed))
    assert open_file.choose_open_files() == kept


def test_few_columns_are_kept_in_memory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "CACHED_ROWS", 1)
    monkeypatch.setattr(reader_module, "MIN_CACHED_SHARDS", 1)
    reader = ShardReader(directory, "train")
    rows = [0, 7, 3, 1, 6]
    assert reader.read_images(rows) == [RECORDS[row].image for row in rows]


def test_threads_share_a_reader(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that one thread closes for another are still read to the end."""
    monkeypatch.setattr(open_file.OpenFiles.__init__, "__defaults__", (1,))
    monkeypatch.setattr(reader_module, "PARALLEL_BYTES", 1)
    reader = ShardReader(directory, "train")
    rows = list(range(8)) * 50
    with ThreadPoolExecutor(4) as pool:
        for images in pool.map(reader.read_images, [rows, rows[::-1]] * 4):
            assert sorted(set(images)) == sorted(record.image for record in RECORDS)


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


def test_labels_are_in_row_order(directory: Path) -> None:
    labels = ShardReader(directory, "train").labels
    assert labels.dtype == np.int32
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    chosen = ShardReader(directory, "train").read_labels([7, 2, 2])
    assert (chosen.tolist(), chosen.dtype) == ([1, 2, 2], np.int32)


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
    assert (reader.rows, reader.labels.tolist(), reader.read_ids([])) == (0, [], [])
    assert len(reader.shard_rows) == 0


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
    path = find_shard(directory, 3)
    path.unlink()
    reader = ShardReader(directory, "train")
    with pytest.raises(DataError, match=rf"{path.name} \(missing\)"):
        reader.read_images([4])


@pytest.mark.parametrize("file", ["train.shards.arrow", "train.rows.arrow"])
@pytest.mark.parametrize("damage", ["missing", "shorter", "changed"])
def test_a_damaged_sidecar_is_named(arrow: Path, file: str, damage: str) -> None:
    path = arrow / file
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "shorter":
        os.truncate(path, len(content) - 1)
    else:
        (shard,) = pa.ipc.open_file(arrow / "train.shards.arrow").read_all().to_pylist()[1:2]
        content[shard["index_offset"] + shard["index_bytes"] - 3] ^= 1
        path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(file)):
        ShardReader(arrow, "train").read_images([4])


def test_sidecars_are_arrow_files_for_any_program(directory: Path) -> None:
    reader = ShardReader(directory, "train")
    if reader.manifest.version == 2:
        return
    rows = pa.ipc.open_file(directory / "train.rows.arrow").read_all()
    assert rows["label"].to_pylist() == [record.label for record in RECORDS]
    assert rows["shape"].to_pylist() == [list(record.shape) for record in RECORDS]
    shards = pa.ipc.open_file(directory / "train.shards.arrow").read_all()
    assert shards["rows"].to_pylist() == [3, 3, 2]
    for number, digest in zip((0, 3, 6), shards["sha256"].to_pylist(), strict=True):
        assert digest == hashlib.sha256(find_shard(directory, number).read_bytes()).digest()


@pytest.mark.parametrize("damage", ["image", "label", "checksum"])
def test_a_changed_row_is_named_when_it_is_read(old: Path, damage: str) -> None:
    directory = old
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


def test_a_changed_image_is_named(directory: Path) -> None:
    path = find_shard(directory, 3)
    replace_bytes(path, b"bytes of 4", b"bytes oF 4")
    with pytest.raises(
        DataError, match=rf"{path.name}.*: row=1 of the file, row=4 of split 'train', id=id-4"
    ):
        ShardReader(directory, "train").read_images([5, 4])


@pytest.mark.parametrize("damage", ["all", "footer", "batch"])
def test_a_file_of_the_right_size_that_is_not_arrow_is_named(old_arrow: Path, damage: str) -> None:
    path = old_arrow / "train-00003.arrow"
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
        ShardReader(old_arrow, "train").read_images([4])


def test_a_file_with_another_number_of_rows_is_named(old: Path) -> None:
    change_manifest(old, 1, rows=4)
    with pytest.raises(DataError, match=r"4 rows. Received: .*train-00003\..*: rows=3\."):
        ShardReader(old, "train").read_images([4])


def test_a_file_with_other_columns_is_named(old_arrow: Path) -> None:
    path = old_arrow / "train-00000.arrow"
    batch = pa.record_batch({"image": [b"x"], "label": [1]})
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)
    change_manifest(old_arrow, 0, bytes=path.stat().st_size, rows=1)
    with pytest.raises(
        DataError, match=rf"train-00000\.arrow: the columns are not {', '.join(RECORD_SCHEMA.names)}\."
    ):
        ShardReader(old_arrow, "train").read_images([0])
