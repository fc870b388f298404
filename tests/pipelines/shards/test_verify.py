"""Damage of every kind is found, and reported once per file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_samples import make_record, write_shards

from pipelines.errors import DataError
from pipelines.records import Record
from pipelines.shards.files import LocalFiles
from pipelines.shards.manifest import Manifest, load_manifest
from pipelines.shards.split_index import SetShards, index_shard, write_split
from pipelines.shards.verify import check_shard, verify_shards

CLASSES = ("ant", "bee", "cat")
RECORDS = [
    make_record(np.full((3, 2 + row, 3), 20 * row, np.uint8), row % 3, f"folder/{row}.png")
    for row in range(8)
]
FORMATS = ("arrow", "tfrecord")


KINDS = [(format, version) for format in FORMATS for version in (2, 3)]


def write_set(directory: Path, records: Sequence[Record] = RECORDS, **options: Any) -> Path:
    """Writes shards of 3, 3 and 2 rows."""
    return write_shards(directory / "shards", CLASSES, {"train": records}, 3, **options)


def find_problems(directory: Path) -> list[str | None]:
    """Returns the problem of every shard, without Ray."""
    manifest = load_manifest(directory)
    files = LocalFiles(directory)
    return [
        check_shard(files, shard, manifest.encoding, len(CLASSES)).problem
        for shard in SetShards(files, manifest)
    ]


def replace_row(row: int, **changes: object) -> list[Record]:
    return [replace(record, **changes) if index == row else record for index, record in enumerate(RECORDS)]


def replace_bytes(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert len(old) == len(new)
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


def change_manifest(directory: Path, change: dict[str, object]) -> None:
    """Changes entries of the split in the manifest."""
    content = load_manifest(directory).model_dump()
    content["splits"]["train"].update(change)
    Manifest.model_validate(content).save(directory)


@pytest.mark.parametrize(("suffix", "version"), KINDS)
def test_an_intact_set_has_no_problems(tmp_path: Path, suffix: str, version: int) -> None:
    assert find_problems(write_set(tmp_path, format=suffix, version=version)) == [None, None, None]


def test_an_index_that_differs_from_a_shard_is_named(tmp_path: Path) -> None:
    """Each file is intact by its own digest, but the index is that of other images."""
    directory = write_set(tmp_path)
    shards = [entry.shard for entry in SetShards(LocalFiles(directory), load_manifest(directory))]
    parts = [index_shard(directory, shard) for shard in shards]
    shapes = np.array([record.shape for record in RECORDS[3:6]], np.int32)
    changed_shapes = np.array([(3, 5, 3), (3, 7, 3), (3, 7, 3)], np.int32)
    assert parts[1].count(shapes.tobytes()) == 1
    parts[1] = parts[1].replace(shapes.tobytes(), changed_shapes.tobytes())
    sidecars = write_split(directory, "train", "arrow", zip(shards, parts, strict=True))
    change_manifest(directory, dict(sidecars))
    problem = "train.rows.arrow: shapes of row=1 of train-00003.arrow differ from that file"
    assert find_problems(directory) == [None, problem, None]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_changed_image_is_named(tmp_path: Path, suffix: str) -> None:
    directory = write_set(tmp_path, format=suffix)
    image = RECORDS[4].image
    replace_bytes(
        directory / f"train-00003.{suffix}", image, image[:-20] + bytes([image[-20] ^ 4]) + image[-19:]
    )
    problem = f"train-00003.{suffix}: row=1 id=folder/4.png: image, label or checksum is not what was written"
    assert find_problems(directory) == [None, problem, None]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": RECORDS[4].image[:40]}, "the image cannot be decoded: damaged"),
        ({"image": b"not an image"}, "the image cannot be decoded: not a JPEG, PNG"),
        ({"image": b""}, "the image cannot be decoded: empty file"),
        ({"shape": (3, 5, 3)}, r"the image is of shape=\(3, 6, 3\), expected \(3, 5, 3\)"),
        ({"label": 3}, "label=3, expected 0 to 2"),
    ],
)
def test_a_row_that_was_written_wrong_is_named(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    directory = tmp_path / "set"
    write_shards(directory, (*CLASSES, "dog"), {"train": replace_row(4, **changes)}, 3)
    first, second, third = find_problems(directory)
    assert (first, third) == (None, None)
    assert second is not None
    assert second.startswith("train-00003.arrow: row=1 id=folder/4.png: ")
    assert re.search(reason, second)


def test_the_first_bad_row_is_named(tmp_path: Path) -> None:
    records = [
        replace(record, image=b"x") if index in (1, 2) else record for index, record in enumerate(RECORDS)
    ]
    problem = find_problems(write_set(tmp_path, records))[0]
    assert problem is not None
    assert problem.startswith("train-00000.arrow: row=1 id=folder/1.png")


def test_raw_pixels_are_counted(tmp_path: Path) -> None:
    records = [Record(bytes(3 * 4 * (1 + row)), 0, str(row), (3, 4, 1 + row)) for row in range(2)]
    assert find_problems(write_set(tmp_path / "good", records, encoding="raw")) == [None]
    records[1] = replace(records[1], shape=(3, 3, 2))
    assert find_problems(write_set(tmp_path / "bad", records, encoding="raw")) == [
        "train-00000.arrow: row=1 id=1: bytes=24, expected those of shape=(3, 3, 2)"
    ]


@pytest.mark.parametrize("name", ["train-00003.tfrecord", "train-00003.index.arrow"])
def test_a_missing_or_short_file_is_named(tmp_path: Path, name: str) -> None:
    directory = write_set(tmp_path, format="tfrecord")
    path = directory / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert [f"{name}: bytes={len(whole) - 1}" in (problem or "") for problem in find_problems(directory)] == [
        False,
        True,
        False,
    ]
    path.unlink()
    assert [f"{name} (missing)" in (problem or "") for problem in find_problems(directory)] == [
        False,
        True,
        False,
    ]


def test_a_change_outside_the_rows_is_named(tmp_path: Path) -> None:
    """A byte of the framing of TFRecord, which reading through the index passes over."""
    directory = write_set(tmp_path, format="tfrecord")
    path = directory / "train-00003.tfrecord"
    data = bytearray(path.read_bytes())
    data[8] ^= 1
    path.write_bytes(data)
    problem = "train-00003.tfrecord: the SHA-256 differs, although every row is as it was written"
    assert find_problems(directory) == [None, problem, None]


def test_an_index_that_was_exchanged_is_named(tmp_path: Path) -> None:
    directory = write_set(tmp_path, format="tfrecord")
    path = directory / "train-00003.index.arrow"
    data = path.read_bytes()
    label = np.array([0, 1, 2], np.int32).tobytes()
    assert data.count(label) == 1
    path.write_bytes(data.replace(label, label[::-1]))
    problem = find_problems(directory)[1]
    assert problem is not None
    assert "row=0 id=folder/3.png: image, label or checksum" in problem


def test_a_wrong_number_of_rows_is_named(tmp_path: Path) -> None:
    directory = write_set(tmp_path, version=2)
    content = load_manifest(directory).model_dump()
    content["splits"]["train"]["shards"][1]["rows"] = 2
    Manifest.model_validate(content).save(directory)
    problem = find_problems(directory)[1]
    assert problem is not None
    assert "expected a shard file of 2 rows" in problem


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.json"):
        verify_shards(tmp_path)


@pytest.mark.e2e
@pytest.mark.usefixtures("ray_cluster")
class TestWholeSets:
    def test_a_sound_set(self, tmp_path: Path) -> None:
        for suffix, version in KINDS:
            calls: list[tuple[int, int]] = []
            directory = write_set(tmp_path / f"{suffix}-{version}", format=suffix, version=version)
            before = {path.name: path.read_bytes() for path in directory.iterdir()}
            assert (
                verify_shards(directory, lambda done, total, calls=calls: calls.append((done, total))) == []
            )
            assert (calls[0], calls[-1], len(calls)) == ((0, 8), (8, 8), 4)
            assert sorted(calls) == calls
            assert {path.name: path.read_bytes() for path in directory.iterdir()} == before

    def test_every_bad_file_has_its_line_in_the_order_of_the_set(self, tmp_path: Path) -> None:
        directory = write_set(tmp_path, replace_row(1, image=b"x"))
        (directory / "train-00006.arrow").unlink()
        path = directory / "train-00003.arrow"
        path.write_bytes(bytes(path.stat().st_size))
        lines = verify_shards(directory)
        assert [line.split(":")[0] for line in lines] == [
            "train-00000.arrow",
            "train-00003.arrow",
            "train-00006.arrow",
        ]
        assert "row=1 id=folder/1.png" in lines[0]

    def test_an_id_that_comes_twice_is_named_where_it_comes_again(self, tmp_path: Path) -> None:
        directory = write_shards(
            tmp_path / "shards",
            CLASSES,
            {"train": replace_row(7, id="folder/2.png"), "validation": [replace(RECORDS[0], id="new")]},
            3,
        )
        assert verify_shards(directory) == [
            "train-00006.arrow: row=1 id=folder/2.png: an earlier row has this id"
        ]

    def test_a_changed_index_is_named(self, tmp_path: Path) -> None:
        directory = write_set(tmp_path)
        shape = np.array(RECORDS[4].shape, np.int32).tobytes()
        replace_bytes(directory / "train.rows.arrow", shape, shape[::-1])
        index, shard = verify_shards(directory)
        assert index == "train.rows.arrow: the SHA-256 differs"
        assert "train.rows.arrow: other content for the rows of train-00003.arrow" in shard

    def test_wrong_class_counts_are_named(self, tmp_path: Path) -> None:
        directory = write_set(tmp_path)
        change_manifest(directory, {"class_counts": [3, 2, 3]})
        assert verify_shards(directory) == [
            "manifest.json: split=train: class_counts=[3, 2, 3], found [3, 3, 2]"
        ]
